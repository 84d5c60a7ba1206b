-- Who has a copy of the log. All topics of a log have the same copies: those of the PostgreSQL group it is in.

-- Takes no lock, reads the state of replication and of the replication slots, writes nothing, returns one row for
-- each server of the group that this one knows: itself, the followers that are connected to it, and those that
-- should be and are not (a physical replication slot that nobody uses, a name in synchronous_standby_names). On a
-- follower: itself, the server it streams from, and what is connected to it. in_sync: a synchronous commit may
-- wait for it (or it is the leader); null: a follower cannot tell. Of a follower that is connected the owner of
-- the log sees no more than that it is there, state 'unseen', unless he has pg_read_all_stats.
create or replace function group_servers()
returns table (name text, role text, address text, state text, sync_state text, in_sync boolean,
               flush_lag_bytes int8, replay_lag_bytes int8, flush_lag_ms int8, replay_lag_ms int8, rack text)
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    follows constant boolean := pg_is_in_recovery();
    own_address constant text := host(inet_server_addr()) || ':' || current_setting('port');
    own_name constant text := coalesce(nullif(current_setting('logstore.server', true), ''),
        nullif(current_setting('cluster_name'), ''), own_address, 'local');
    own_rack constant text := nullif(current_setting('logstore.rack', true), '');
    written pg_lsn;
    ready pg_lsn;
begin
    if not follows then
        written := pg_current_wal_flush_lsn();
        return query select own_name, 'leader', own_address, 'running', null::text, true,
            null::int8, null::int8, null::int8, null::int8, own_rack;
    else
        written := pg_last_wal_receive_lsn();
        ready := pg_last_wal_replay_lsn();
        return query
            select coalesce(r.sender_host || ':' || r.sender_port, 'leader'), 'leader',
                   r.sender_host || ':' || r.sender_port, 'sending', null::text, null::boolean,
                   null::int8, null::int8, null::int8, null::int8, null::text
            from pg_stat_wal_receiver r where r.pid is not null;
        return query
            select own_name, 'follower', own_address, coalesce(r.status, 'missing'), null::text, null::boolean,
                   greatest(pg_wal_lsn_diff(r.latest_end_lsn, r.flushed_lsn), 0)::int8,
                   greatest(pg_wal_lsn_diff(greatest(r.latest_end_lsn, written), ready), 0)::int8,
                   null::int8,
                   case when ready >= greatest(r.latest_end_lsn, written) then 0
                        else floor(extract(epoch from clock_timestamp()
                                                      - pg_last_xact_replay_timestamp()) * 1000) end::int8,
                   own_rack
            from (select) one left join pg_stat_wal_receiver r on true;
    end if;

    return query
    with connected as materialized (
        select case when r.state is null then null
                    when r.application_name in ('', 'walreceiver')
                        then coalesce(s.slot_name, host(r.client_addr), r.application_name)
                    else r.application_name end as name,
               host(r.client_addr) as address, coalesce(r.state, 'unseen') as state, r.sync_state,
               r.sync_state in ('sync', 'quorum') and r.state = 'streaming' as in_sync,
               case when r.flush_lsn is not null
                    then greatest(pg_wal_lsn_diff(written, r.flush_lsn), 0) end::int8 as flush_bytes,
               case when r.replay_lsn is not null
                    then greatest(pg_wal_lsn_diff(written, r.replay_lsn), 0) end::int8 as replay_bytes,
               floor(extract(epoch from r.flush_lag) * 1000)::int8 as flush_ms,
               floor(extract(epoch from r.replay_lag) * 1000)::int8 as replay_ms
        from pg_stat_replication r
        left join pg_replication_slots s on s.active_pid = r.pid
        -- Neither a subscriber nor a base backup is a server that could lead.
        where s.slot_type is distinct from 'logical' and r.state is distinct from 'backup'),
    missing (name) as (
        select s.slot_name::text from pg_replication_slots s
        -- Used once: restart_lsn is what it keeps for whoever comes back.
        where s.slot_type = 'physical' and not s.active and not s.temporary
            and (s.restart_lsn is not null or s.wal_status = 'lost') and not follows
        union
        select n from synchronous_names() n
        where n <> '*' and not follows
            and not exists (select from pg_replication_slots s
                            where s.slot_type = 'physical'
                                and s.slot_name = regexp_replace(lower(n), '[^a-z0-9_]', '_', 'g')))
    select coalesce(c.name, 'unseen'), 'follower', c.address, c.state, c.sync_state,
           case when not follows then coalesce(c.in_sync, false) end,
           c.flush_bytes, c.replay_bytes,
           case when c.flush_bytes = 0 then 0 else c.flush_ms end,
           case when c.replay_bytes = 0 then 0 else c.replay_ms end, null::text
    from connected c
    union all
    select m.name, 'follower', null, 'missing', null, false, null, null, null, null, null
    from missing m
    where not exists (select from connected c
                      where regexp_replace(lower(c.name), '[^a-z0-9_]', '_', 'g')
                          = regexp_replace(lower(m.name), '[^a-z0-9_]', '_', 'g'));
end
$$;

-- Takes no lock, reads the setting, writes nothing, returns the names in synchronous_standby_names, '*' as it is.
create or replace function synchronous_names() returns setof text
language sql stable set search_path from current
begin atomic
    select case when m[1] ^@ '"' then replace(substr(m[1], 2, length(m[1]) - 2), '""', '"') else m[1] end
    from regexp_matches(
        regexp_replace(current_setting('synchronous_standby_names'),
            '^\s*(?:(?:FIRST|ANY)\s+)?\d+\s*\((.*)\)\s*$', '\1', 'i'),
        '("(?:[^"]|"")*"|[^\s,"]+)', 'g') m;
end;

-- Takes no lock, reads what group_servers() reads, writes nothing, returns one row: the leader's name; the names of all
-- servers and of those in sync, the leader first; how many there should be, how many have, or are about to have,
-- what was written (the leader and the followers that stream), for how many servers' flush a synchronous commit
-- waits, the leader's included; and whether all that is known: not on a follower (then all but the leader is
-- null), and not where followers cannot be seen.
create or replace function replication_state(
    out leader text, out servers text[], out in_sync text[], out expected int4, out having_it int4,
    out acknowledging int4, out known boolean)
language sql volatile set search_path from current
begin atomic
    select min(s.name) filter (where s.role = 'leader'),
           case when not pg_is_in_recovery()
                then array_agg(s.name order by s.role desc, s.name) end,
           array_agg(s.name order by s.role desc, s.name) filter (where s.in_sync),
           case when not pg_is_in_recovery() then count(*) end::int4,
           case when not pg_is_in_recovery()
                then count(*) filter (where s.state in ('running', 'streaming')) end::int4,
           case when not pg_is_in_recovery() then acknowledging_replicas() end,
           not pg_is_in_recovery() and bool_and(s.state <> 'unseen')
    from group_servers() s;
end;

-- Takes no lock, reads the state of replication, writes nothing, returns nothing. LS018: there are not so many
-- servers, or it is no number of replicas. Null and -1: however many there are.
create or replace function check_replication_factor(topic text, replication_factor int4) returns void
language plpgsql volatile set search_path from current as $$
declare
    group_state record;
begin
    if coalesce(replication_factor, -1) = -1 then
        return;
    end if;
    if replication_factor not between 1 and 32767 then
        perform raise_error('LS018',
            format('a replication factor is 1 or more, or -1 for as many as there are servers, not %s',
                replication_factor),
            jsonb_build_object('topic', topic, 'replication_factor', replication_factor), null);
    end if;
    group_state := replication_state();
    if replication_factor > 1 and replication_factor > coalesce(group_state.having_it, 1) then
        perform raise_error('LS018',
            format('a replication factor of %s was asked for topic %s, but %s would have it',
                replication_factor, topic,
                case coalesce(group_state.having_it, 1) when 1 then 'one server'
                    else group_state.having_it || ' servers' end),
            jsonb_build_object('topic', topic, 'replication_factor', replication_factor,
                'replicas', group_state.having_it, 'servers', group_state.servers),
            case when group_state.known is false then
                'The owner of the log sees no followers: GRANT pg_read_all_stats TO it.'
            else 'Add followers, or ask for fewer (-1: as many as there are).' end);
    end if;
end
$$;

-- Waits for the topic's guard and row, reads the state of replication, writes the topic's row, returns nothing.
-- From then on the topic is under-replicated where fewer servers have it; -1: where one of the group is missing.
-- LS001, LS018.
create or replace function alter_replication_factor(name text, replication_factor int4) returns void
language plpgsql volatile security definer set search_path from current as $$
declare
    before topic := guarded_topic(name);
begin
    perform check_replication_factor(name, replication_factor);
    update topic t set replication_factor = nullif(alter_replication_factor.replication_factor, -1)
    where t.topic_id = before.topic_id;
end
$$;

-- The servers that have, or should have, a copy.
create or replace view replicas as
select s.name, s.role, s.address, s.state, s.sync_state, s.in_sync, s.flush_lag_bytes, s.replay_lag_bytes,
       s.flush_lag_ms, s.replay_lag_ms, s.rack
from group_servers() s;

-- Every partition with its copies, which are the same for all. under_min_isr: acks=all is refused. Null: this
-- server cannot tell, being a follower, or its followers cannot be seen.
create or replace view partition_replicas as
select t.name as topic, p.partition, g.leader, coalesce(t.replication_factor, g.expected)::int4 as replication_factor,
       g.servers as replicas, g.in_sync, t.min_insync_replicas::int4 as min_insync_replicas,
       case when g.known then g.having_it < coalesce(t.replication_factor, g.expected) end as under_replicated,
       case when g.known then least(cardinality(g.in_sync), g.acknowledging) < t.min_insync_replicas end
           as under_min_isr,
       case when g.known then least(cardinality(g.in_sync), g.acknowledging) >= t.min_insync_replicas
                              and cardinality(g.in_sync) = t.min_insync_replicas end as at_min_isr
from topic t
cross join replication_state() g
cross join lateral generate_series(0, t.partitions - 1) as p (partition);

-- Where one cannot tell, all are listed: nobody is to take silence for health.
create or replace view under_replicated_partitions as
select p.topic, p.partition, p.leader, p.replication_factor, p.replicas, p.in_sync
from partition_replicas p where p.under_replicated is not false;

create or replace view under_min_isr_partitions as
select p.topic, p.partition, p.leader, p.min_insync_replicas, p.replicas, p.in_sync
from partition_replicas p where p.under_min_isr is not false;

create or replace view at_min_isr_partitions as
select p.topic, p.partition, p.leader, p.min_insync_replicas, p.replicas, p.in_sync
from partition_replicas p where p.at_min_isr is not false;
