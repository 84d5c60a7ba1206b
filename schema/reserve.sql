-- A few megabytes kept for the moment when the disk is full: dropping segments needs some pages of the catalog
-- before it gives space back.

-- Locks the reserve, which nobody reads, and fills it up to wanted bytes; returns whether anything was missing.
create or replace function keep_reserve(wanted int8 default 4194304) returns boolean
language plpgsql volatile security definer set search_path from current as $$
declare
    missing int8;
begin
    if not pg_try_advisory_xact_lock(lock_class('reserve'), 0) then
        return false;
    end if;
    missing := wanted - pg_catalog.pg_relation_size('disk_reserve');
    -- 16 rows a page.
    insert into disk_reserve select '', '', '', '', '', '', '' from generate_series(1, missing / 512);
    return missing >= 8192;
end
$$;

-- Locks the reserve, which nobody reads, and gives its space back; returns whether there was any.
create or replace function spend_reserve() returns boolean
language plpgsql volatile security definer set search_path from current as $$
begin
    if pg_catalog.pg_relation_size('disk_reserve') = 0 then
        return false;
    end if;
    truncate disk_reserve;
    return true;
end
$$;
