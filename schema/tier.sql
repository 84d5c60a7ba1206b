-- Sealed segments in files: what is there, what is to be copied, dropped, deleted, brought back. Files are
-- written, read and deleted by clients; here is their catalog.

-- The shape of a file that may be read: a view, so that it can be replaced.
create or replace view remote_file as
select f.file_id, f.topic_id, f.partition, f.first_offset, f.last_offset, f.records, f.bytes, f.log_bytes,
       f.min_timestamp, f.max_timestamp, f.url, f.sha256, f.part_ends, f.part_sha256, f.group_last_offsets,
       f.group_max_timestamps
from remote_segment f where f.state = 'copied';

-- Takes no lock, reads the catalog, writes nothing, returns the files that hold the records of a partition from
-- "offset" on that are in files only, in order, at most most.
create or replace function remote_files(
    topic_id int4, "partition" int4, "offset" int8, most int4 default null) returns setof remote_file
language sql stable security definer set search_path from current
begin atomic
    select f.* from remote_file f
    join topic_partition p on p.topic_id = f.topic_id and p.partition = f.partition
    where f.topic_id = remote_files.topic_id and f.partition = remote_files.partition
      and f.last_offset >= greatest(remote_files."offset", p.log_start) and f.first_offset < p.local_start
    order by f.last_offset limit remote_files.most;
end;

-- Takes no lock beyond ACCESS SHARE; reads the catalog, and searches what is in PostgreSQL; writes nothing;
-- returns the first record from from_offset on with this time stamp (ms) or a later one, or the file that has
-- it, unless all its records that late lie before from_offset or the log start: then ask again from its end on.
-- All null: there is none. LS001.
create or replace function find_time(
    topic_id int4, "partition" int4, "timestamp" int8, from_offset int8,
    out "offset" int8, out found_timestamp int8, out leader_epoch int4, out log_start int8, out file remote_file)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    p topic_partition;
begin
    select q.* into p from topic_partition q
    where q.topic_id = find_time.topic_id and q.partition = find_time.partition;
    if not found then
        perform no_partition(find_time.topic_id, find_time.partition);
    end if;
    log_start := p.log_start;
    select f.* into file from remote_files(p.topic_id, p.partition, from_offset) f
    where f.max_timestamp >= find_time."timestamp" order by f.last_offset limit 1;
    if file.file_id is null then
        p.log_start := greatest(p.log_start, p.local_start, from_offset);
        select o.* into "offset", found_timestamp, leader_epoch
        from offset_for_time(p, find_time."timestamp", readable_to(p.topic_id, p.partition)) o;
    end if;
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns nothing. LS004: what the configs say of files makes
-- no sense together.
create or replace function check_tiering(overrides jsonb) returns void
language plpgsql stable set search_path from current as $$
declare
    configs constant jsonb := effective_configs(overrides);
    url constant text := configs ->> 'remote.storage.url';
    size text;
begin
    perform check_tier_url(url);
    if configs ->> 'remote.storage.enable' = 'false' then
        return;
    end if;
    if 'compact' = any (string_to_array(configs ->> 'cleanup.policy', ',')) then
        perform raise_error('LS004', 'a compacted topic cannot have remote.storage.enable',
            jsonb_build_object('config', 'remote.storage.enable', 'cleanup.policy', configs ->> 'cleanup.policy'),
            'Compaction would have to rewrite files: choose cleanup.policy=delete, or keep the topic in '
            'PostgreSQL.');
    end if;
    foreach size in array array['ms', 'bytes'] loop
        if (configs ->> ('retention.' || size))::int8 >= 0
           and ((configs ->> ('local.retention.' || size))::int8 > (configs ->> ('retention.' || size))::int8
                or (configs ->> ('local.retention.' || size))::int8 = -1) then
            perform raise_error('LS004',
                format('local.retention.%1$s, %2$s, is more than retention.%1$s, %3$s', size,
                    configs ->> ('local.retention.' || size), configs ->> ('retention.' || size)),
                jsonb_build_object('config', 'local.retention.' || size), 'Use -2 for the same.');
        end if;
    end loop;
end
$$;

-- Takes no lock, reads and writes nothing, returns nothing. LS004: url is no place for files, or has a password
-- in it, which everybody would see.
create or replace function check_tier_url(url text) returns void
language plpgsql immutable set search_path from current as $$
begin
    if url = '' or url ~ '^[a-zA-Z][a-zA-Z0-9+.-]*(::[a-zA-Z][a-zA-Z0-9+.-]*)*://[^[:cntrl:]]+$'
       and url !~ '://[^/]*:[^/]*@' then
        return;
    end if;
    perform raise_error('LS004', format('%s is no URL for files',
            shown(regexp_replace(url, '://([^/:@]*):[^/@]*@', '://\1:***@'))),
        jsonb_build_object('config', 'remote.storage.url'),
        'Write it as in file:///srv/log or s3://bucket/log, without a password: that belongs into the '
        'environment of those who read and write (see docs/tiering.md).');
end
$$;

-- Needs the topic's guard and row; takes the rows of its partitions; reads and writes the catalog, returns
-- nothing: makes true what a change of the configs means for files. LS056: records would be lost.
create or replace function settle_tiering(topic_id int4, was boolean, configs jsonb) returns void
language plpgsql volatile set search_path from current as $$
#variable_conflict use_column
declare
    remote int8;
begin
    if not was or configs ->> 'remote.storage.enable' = 'true' then
        return;
    end if;
    perform from topic_partition p
    where p.topic_id = settle_tiering.topic_id order by p.partition for no key update;
    select sum(p.local_start - p.log_start) into remote from topic_partition p
    where p.topic_id = settle_tiering.topic_id and p.local_start > p.log_start;
    if remote > 0 and configs ->> 'remote.log.delete.on.disable' is distinct from 'true' then
        perform raise_error('LS056', format('%s offsets of the topic are in files only', remote),
            jsonb_build_object('config', 'remote.storage.enable', 'offsets', remote),
            'Bring them back with `logstore tier restore`, or set remote.log.copy.disable=true to copy no more, '
            'or remote.log.delete.on.disable=true to have them deleted.');
    end if;
    update topic_partition p set log_start = p.local_start
    where p.topic_id = settle_tiering.topic_id and p.local_start > p.log_start;
    update remote_segment f set state = 'deleting' where f.topic_id = settle_tiering.topic_id;
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns the topics that a worker has to look after: those
-- with files, those that shall have some, and those that are deleted and still have some (name is null). url:
-- where new files go; empty: nobody has said.
create or replace function tiered_topics()
returns table (topic_id int4, name text, copies boolean, url text)
language sql stable security definer set search_path from current
begin atomic
    select t.topic_id, t.name,
           t.tiered and coalesce(t.configs ->> 'remote.log.copy.disable', 'false') = 'false',
           coalesce(nullif(t.configs ->> 'remote.storage.url', ''), (select l.url from tier_location l), '')
    from topic t
    where t.tiered or exists (select from remote_segment f where f.topic_id = t.topic_id)
       or exists (select from tier_restore r where r.topic_id = t.topic_id)
    union all
    select distinct f.topic_id, null::text, false, ''
    from remote_segment f where not exists (select from topic t where t.topic_id = f.topic_id)
    order by 1;
end;

-- Takes the one row's lock, writes where files go from now on (empty: nowhere in particular), returns nothing;
-- with only_if_none, leaves what somebody has said already. LS004.
create or replace function set_tier_location(url text, only_if_none boolean default false) returns void
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
begin
    perform check_tier_url(coalesce(set_tier_location.url, ''));
    if coalesce(set_tier_location.url, '') = '' then
        delete from tier_location;
    else
        insert into tier_location (url) values (set_tier_location.url)
        on conflict (only_row) do update set url = excluded.url where not only_if_none;
    end if;
end
$$;

-- Tries to take the lock under which one worker at a time handles the files of a topic, holds it to the end of
-- the transaction, returns whether it has it. Whatever is half done then is nobody's.
create or replace function claim_files(topic_id int4) returns boolean
language sql volatile security definer set search_path from current
begin atomic
    select pg_catalog.pg_try_advisory_xact_lock(lock_class('tier'), claim_files.topic_id);
end;

-- Takes no lock, reads the catalog, writes nothing, returns the next range of offsets of a topic that is sealed
-- and in no file, oldest first, a segment's part of one partition at a time; no row: all is copied, or still has
-- records that are to be erased, or is not replicated yet.
create or replace function next_copy(topic_id int4)
returns table ("partition" int4, first_offset int8, last_offset int8)
language sql stable security definer set search_path from current
begin atomic
    select p.partition, s.first_offset, s.last_offset
    from topic_partition p
    cross join lateral (
        select coalesce(max(f.last_offset) + 1, 0) as copied_to from remote_file f
        where f.topic_id = p.topic_id and f.partition = p.partition) c
    cross join lateral (
        select greatest(p.log_start, p.local_start, c.copied_to, s.first_offset) as first_offset, s.last_offset
        from sealed_segment s
        join topic_segment g on g.topic_id = s.topic_id and g.segment = s.segment and g.live
        where s.topic_id = p.topic_id and s.partition = p.partition
          and s.last_offset >= greatest(p.log_start, p.local_start, c.copied_to)
        order by s.last_offset limit 1) s
    where p.topic_id = next_copy.topic_id
      -- A file is not taken back when a failover takes the records away.
      and s.last_offset < readable_to(p.topic_id, p.partition)
      and not exists (select from erasure e
                      where e.topic_id = p.topic_id and e.finished_at is null and e.removed_at is null
                        and e.ends[p.partition + 1] > s.first_offset)
    order by s.last_offset - s.first_offset desc, p.partition limit 1;
end;

-- Takes no lock beyond ACCESS SHARE; reads the batches of a range of offsets that ends with a batch (not their keys and
-- values); writes nothing; returns how many records the range has, which a copy of it has to have, and the batches' size.
create or replace function records_between(
    topic_id int4, "partition" int4, first_offset int8, last_offset int8, out records int8, out bytes int8)
language plpgsql stable security definer set search_path from current
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    leaf record;
    part record;
begin
    records := 0;
    bytes := 0;
    for leaf in
        select s.segment from sealed_segment s
        join topic_segment g on g.topic_id = s.topic_id and g.segment = s.segment and g.live
        where s.topic_id = records_between.topic_id and s.partition = records_between.partition
          and s.last_offset >= records_between.first_offset
          and s.first_offset <= records_between.last_offset
    loop
        execute format(
            -- The log start may lie in the middle of the first one.
            'select coalesce(sum(case when b.base_offset >= $2 then b.record_count
                                      when b.offset_deltas is null
                                      then greatest(b.base_offset + b.record_count - $2, 0)
                                      else (select count(*) from unnest(b.offset_deltas) d
                                            where b.base_offset + d >= $2) end), 0) as records,
                    coalesce(sum(b.size_bytes), 0) as bytes
             from %I b where b.partition = $1 and b.last_offset between $2 and $3',
            'b_' || topic_id || '_' || leaf.segment)
        into part using records_between.partition, records_between.first_offset, records_between.last_offset;
        records := records + part.records;
        bytes := bytes + part.bytes;
    end loop;
end
$$;

-- Takes no lock, reads the rows of erasure, writes nothing, returns the keys that files have not been searched
-- for yet.
create or replace function erasures_in_files(topic_id int4)
returns table (erasure_id int8, key bytea, ends int8[])
language sql stable security definer set search_path from current
begin atomic
    select e.erasure_id, e.key, e.ends from erasure e
    where e.topic_id = erasures_in_files.topic_id and e.finished_at is null and e.files_searched_at is null
      and e.key is not null
    order by e.erasure_id;
end;

-- Reads the topic's name, writes the row of a file that is about to be written below base, returns its id and
-- URL, which no other file ever has. LS001.
create or replace function begin_copy(
    topic_id int4, "partition" int4, first_offset int8, last_offset int8, base text,
    out file_id int8, out url text)
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
begin
    select format('%s/topic=%s/id=%s/partition=%s/%s-%s.parquet', rtrim(base, '/'), t.name, t.topic_id,
                  begin_copy.partition, lpad(begin_copy.first_offset::text, 20, '0'),
                  replace(gen_random_uuid()::text, '-', ''))
    into url from topic t where t.topic_id = begin_copy.topic_id;
    if not found then
        perform no_partition(begin_copy.topic_id, begin_copy.partition);
    end if;
    insert into remote_segment as f (topic_id, partition, first_offset, last_offset, url, state)
    values (begin_copy.topic_id, begin_copy.partition, begin_copy.first_offset, begin_copy.last_offset, url,
            'copying')
    returning f.file_id into file_id;
end
$$;

-- Waits for the topic's guard and the file's row; writes that the file is there and was read back, and that the
-- one it replaces (an erasure) is to be deleted; returns nothing. LS057: meanwhile the topic, or this copy of
-- it, has gone, or somebody else has copied the range.
create or replace function finish_copy(
    file_id int8, replaces int8, records int8, bytes int8, log_bytes int8, min_timestamp int8,
    max_timestamp int8, sha256 bytea, part_ends int8[], part_sha256 bytea[], group_last_offsets int8[],
    group_max_timestamps int8[]) returns void
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    file remote_segment;
begin
    perform pg_advisory_xact_lock(lock_class('guard'), f.topic_id)
    from remote_segment f where f.file_id = finish_copy.file_id;
    select f.* into file from remote_segment f
    where f.file_id = finish_copy.file_id and f.state = 'copying' for update;
    if not found or not exists (select from topic t where t.topic_id = file.topic_id and t.tiered)
       or (replaces is not null and not exists (
           select from remote_file f where f.file_id = replaces and f.topic_id = file.topic_id
             and f.partition = file.partition and f.first_offset = file.first_offset
             and f.last_offset = file.last_offset))
       or exists (select from remote_file f
                  where f.topic_id = file.topic_id and f.partition = file.partition
                    and f.file_id is distinct from replaces
                    and f.last_offset >= file.first_offset and f.first_offset <= file.last_offset) then
        perform raise_error('LS057', 'what was copied is not wanted any more',
            jsonb_build_object('file_id', finish_copy.file_id), null);
    end if;
    update remote_segment f set state = 'deleting' where f.file_id = replaces;
    update remote_segment f
    set state = 'copied', verified_at = clock_timestamp(), records = finish_copy.records,
        bytes = finish_copy.bytes, log_bytes = finish_copy.log_bytes,
        min_timestamp = finish_copy.min_timestamp, max_timestamp = finish_copy.max_timestamp,
        sha256 = finish_copy.sha256, part_ends = finish_copy.part_ends,
        part_sha256 = finish_copy.part_sha256, group_last_offsets = finish_copy.group_last_offsets,
        group_max_timestamps = finish_copy.group_max_timestamps,
        keep_until = (select o.keep_until from remote_segment o where o.file_id = replaces)
    where f.file_id = finish_copy.file_id;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the catalog and the tips; writes nothing; returns for each partition
-- of the topic how far its records may leave PostgreSQL: those before upto are in files, and older than
-- local.retention.ms or more than local.retention.bytes. A share group, which reads in PostgreSQL only, keeps
-- what it has not finished, and so does a restoration for a while. No row: nothing has to go.
create or replace function local_expiry(topic_id int4)
returns table ("partition" int4, local_start int8, upto int8)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    configs constant jsonb := (
        select effective_configs(t.configs) from topic t where t.topic_id = local_expiry.topic_id and t.tiered);
    keep_ms constant int8 := configs ->> 'local.retention.ms';
    keep_bytes constant int8 := configs ->> 'local.retention.bytes';
    now_ms constant int8 := clock_ms();
    part record;
    file record;
begin
    if configs is null or (keep_ms < 0 and keep_bytes < 0) then
        return;
    end if;
    for part in
        select p.partition, greatest(p.log_start, p.local_start) as local_start,
               (select coalesce(sum(s.bytes), 0) from sealed_segment s
                where s.topic_id = p.topic_id and s.partition = p.partition
                  and s.last_offset >= greatest(p.log_start, p.local_start)) as bytes,
               least((select min(w.start_offset) from share_window w
                      where w.topic_id = p.topic_id and w.partition = p.partition),
                     (select min(d.first_offset) from share_delay d
                      where d.topic_id = p.topic_id and d.partition = p.partition)) as held_from
        from topic_partition p where p.topic_id = local_expiry.topic_id order by p.partition
    loop
        "partition" := part.partition;
        local_start := part.local_start;
        upto := part.local_start;
        if keep_bytes >= 0 then
            part.bytes := part.bytes + (
                select coalesce(t.bytes, 0)
                from partition_tips(array[local_expiry.topic_id], array[part.partition]) t);
        end if;
        for file in
            select f.first_offset, f.last_offset, f.log_bytes, f.max_timestamp, f.keep_until
            from remote_segment f
            where f.topic_id = local_expiry.topic_id and f.partition = part.partition and f.state = 'copied'
              and f.last_offset >= part.local_start
            order by f.last_offset
        loop
            exit when file.first_offset > upto or file.keep_until > now_ms or file.last_offset >= part.held_from;
            part.bytes := part.bytes - file.log_bytes;
            exit when not (keep_ms >= 0 and coalesce(file.max_timestamp, 0) < now_ms - keep_ms
                           or keep_bytes >= 0 and part.bytes >= keep_bytes);
            upto := file.last_offset + 1;
        end loop;
        if upto > local_start then
            return next;
        end if;
    end loop;
end
$$;

-- Waits for the topic's guard and the row of each partition whose oldest records may leave PostgreSQL; reads the
-- catalog, writes these rows, returns how many offsets are now in files only. The space is freed with the
-- segments that hold nothing else.
create or replace function release_local(topic_id int4) returns int8
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    part record;
    released int8 := 0;
begin
    perform pg_advisory_xact_lock(lock_class('guard'), release_local.topic_id);
    for part in select e.* from local_expiry(release_local.topic_id) e order by e.partition loop
        update topic_partition p set local_start = part.upto
        where p.topic_id = release_local.topic_id and p.partition = part.partition;
        released := released + part.upto - part.local_start;
    end loop;
    return released;
end
$$;

-- Takes the rows of files that nobody can need any more, because the log starts after them or their topic is
-- gone; writes that they are to be deleted, returns how many.
create or replace function retire_files(topic_id int4) returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    retired int4;
begin
    update remote_segment f set state = 'deleting'
    where f.topic_id = retire_files.topic_id and f.state = 'copied'
      and coalesce(f.last_offset < (select p.log_start from topic_partition p
                                    where p.topic_id = f.topic_id and p.partition = f.partition), true);
    get diagnostics retired = row_count;
    return retired;
end
$$;

-- Needs the claim to the topic's files; reads the catalog, writes nothing, returns the files to be deleted: those
-- that are done with, and those that were not finished.
create or replace function files_to_delete(topic_id int4) returns table (file_id int8, url text)
language sql stable security definer set search_path from current
begin atomic
    select f.file_id, f.url from remote_segment f
    where f.topic_id = files_to_delete.topic_id and f.state <> 'copied' order by f.file_id;
end;

-- Takes and deletes the row of a file that is gone, returns nothing.
create or replace function forget_file(file_id int8) returns void
language sql volatile security definer set search_path from current
begin atomic
    delete from remote_segment f where f.file_id = forget_file.file_id and f.state <> 'copied';
end;

-- What is in files. also_local: PostgreSQL has these records as well.
create or replace view remote_segments as
select t.name as topic, f.partition, f.first_offset, f.last_offset, f.records, f.bytes,
       to_timestamp(f.min_timestamp::float8 / 1000) as min_timestamp,
       to_timestamp(f.max_timestamp::float8 / 1000) as max_timestamp,
       f.state, f.last_offset >= p.local_start as also_local, f.url, encode(f.sha256, 'hex') as sha256,
       f.created_at, f.verified_at, to_timestamp(f.keep_until::float8 / 1000) as keep_until, f.file_id,
       f.log_bytes
from remote_segment f
left join topic t on t.topic_id = f.topic_id
left join topic_partition p on p.topic_id = f.topic_id and p.partition = f.partition;
