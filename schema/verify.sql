-- Auditing a log that is in use. All of it only reads, takes no lock but ACCESS SHARE, and is meant for one
-- REPEATABLE READ transaction, so that every part looks at the same state; `logstore verify` calls it that
-- way. A finding says which check, where, what is wrong, and how many more of its kind the call has found.

-- The shape of what the functions return: a view, so that it can be replaced.
create or replace view verify_finding as
select null::text as "check", null::text as topic, null::int4 as "partition", null::int4 as segment,
       null::int8 as "offset", null::text as "group", null::text as found, null::int8 as total
where false;

-- Takes no lock, reads and writes nothing, returns the checks: what holds when one is green, whether it is
-- only a warning, and what to do when it is red.
create or replace function verify_checks()
returns table (ordinal int4, "check" text, warning boolean, holds text, advice text)
language sql immutable set search_path from current
begin atomic
    select c.* from (values
        (1, 'catalog', false, 'Topics have the partitions and segments they say; nothing belongs to none.',
            'Somebody has changed the catalog by hand: restore its rows from a backup.'),
        (2, 'configs', false, 'What append() goes by is what the configs of the topic say.',
            'Run `logstore topic alter` with any of its configs: it compiles them anew.'),
        (3, 'leaves', false, 'Each segment has its table, attached and indexed; no table is left over.',
            'A missing table is lost data: restore it from a backup. Attach one that is detached, REINDEX a '
            'broken index, drop what is left over.'),
        (4, 'sealed', false, 'The catalog says of each closed segment what the segment itself says.',
            'Where batches are missing, restore the segment from a backup; else correct its row in '
            'sealed_segment, which reads by time and by offset go by.'),
        (5, 'gap', false, 'Offsets go on from batch to batch without a hole.',
            'Records are lost, or were deleted by hand: restore the segment from a backup.'),
        (6, 'overlap', false, 'No offset is in two batches.',
            'Two appends did not wait for each other, or somebody changed rows: look at both batches, and '
            'report a bug if nobody did.'),
        (7, 'counts', false, 'A batch has as many offsets, keys, values, time stamps as records.',
            'The row was changed by hand or is damaged: restore it from a backup.'),
        (8, 'timestamps', false, 'max_timestamp is the largest time stamp of a batch; all are in range.',
            'Look-ups by time miss such records: restore the row from a backup.'),
        (9, 'running', false, 'segment_bytes and the running time stamps follow from the batch before.',
            'Look-ups by time and rolling go by these columns: restore the row from a backup.'),
        (10, 'epochs', false, 'Leader epochs never fall along a partition and none is newer than its leader.',
            'A server that was no leader any more has written: find out which, and look at its batches.'),
        (11, 'sequences', false, 'Each producer''s sequences go on without a hole or a repetition.',
            'A batch of this producer is lost or in the log twice, or what is remembered of it is wrong: '
            'compare the values around it.'),
        (12, 'watermark', false, 'The log start lies in the log; what may be read has no hole, and seals say what is true.',
            'Readers may be shown what is not replicated, or not what is: find out who has written these rows.'),
        (13, 'clock', true, 'Append times never fall along a partition.',
            'The server''s clock was set back, or appends did not wait for each other. LogAppendTime topics '
            'have records in this order.'),
        (14, 'offsets', false, 'Committed offsets lie between 0 and the end of their partition.',
            'Records that this group has read are gone, or its offset was changed by hand: find out which; '
            '`logstore group reset-offsets` sets it.'),
        (15, 'expired', true, 'No group is behind the log start.',
            'Records were deleted before this group had read them; it goes on by its auto_offset_reset.'),
        (16, 'claims', false, 'Nothing was committed under a claim that there never was.',
            'Restore group_claim and group_offset from the same backup.'),
        (17, 'share', false, 'What share groups have in flight lies in their windows, once.',
            'Stop the members, then `logstore share reset-offsets`.'),
        (18, 'files', false, 'What is not in PostgreSQL is in files, without a hole (not read here).',
            'The catalog of files was changed by hand: restore remote_segment from a backup, or the offsets are '
            'lost. `logstore tier verify` reads the files.')
    ) c (ordinal, "check", warning, holds, advice);
end;

-- Takes no lock, reads the catalog of the log and of PostgreSQL, writes nothing, returns what belongs to no
-- topic: rows and tables.
create or replace function verify_strays(at_most int4 default 20) returns setof verify_finding
language sql stable security definer set search_path from current
begin atomic
    select f."check", null::text, f.partition, f.segment, null::int8, null::text, f.found, f.total
    from (select u.*, count(*) over (partition by u."check") as total,
                 row_number() over (partition by u."check" order by u.found, u.partition, u.segment) as nth
          from (select 'catalog' as "check", p.partition, null::int4 as segment,
                       format('topic_partition has partition %s of topic id %s, which there is not',
                              p.partition, p.topic_id) as found
                from topic_partition p where not exists (select from topic t where t.topic_id = p.topic_id)
                union all
                select 'catalog', null, s.segment,
                       format('topic_segment has segment %s of topic id %s, which there is not', s.segment,
                              s.topic_id)
                from topic_segment s where not exists (select from topic t where t.topic_id = s.topic_id)
                union all
                select 'catalog', s.partition, s.segment,
                       format('sealed_segment has segment %s of topic id %s, which there is not', s.segment,
                              s.topic_id)
                from sealed_segment s where not exists (select from topic t where t.topic_id = s.topic_id)
                union all
                select distinct 'catalog', p.partition, null::int4,
                       format('producer_state has topic id %s, which there is not', p.topic_id)
                from producer_state p where not exists (select from topic t where t.topic_id = p.topic_id)
                union all
                select 'watermark', null, null, format('seal %s %s', s.seal_id, case
                    when pg_snapshot_xmax(s.snapshot)::text::int8 > s.xact then
                        format('covers transactions from its own on: its snapshot is %s', s.snapshot)
                    when pg_snapshot_xmax(s.confirmed)::text::int8 > pg_snapshot_xmax(s.snapshot)::text::int8 then
                        format('confirms %s, which is beyond its snapshot, %s', s.confirmed, s.snapshot)
                    else format('ends at %s, beyond the end of the write-ahead log', s.lsn) end)
                from seal s
                -- Those that came with a dump say nothing.
                where s.xmin::text::int8 = s.xact & 4294967295
                  and (pg_snapshot_xmax(s.snapshot)::text::int8 > s.xact
                       or pg_snapshot_xmax(s.confirmed)::text::int8 > pg_snapshot_xmax(s.snapshot)::text::int8
                       or s.lsn > case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
                                       else pg_catalog.pg_current_wal_insert_lsn() end)
                union all
                select 'leaves', null, null, format('table %s belongs to no topic', c.relname)
                from pg_catalog.pg_class c,
                     lateral (select split_part(c.relname, '_', 2)::numeric as topic_id) n
                where c.relnamespace = pg_catalog.to_regnamespace(quote_ident(current_schema()))
                  and c.relkind in ('r', 'p') and c.relname ~ '^b_[0-9]+(_[0-9]+)?$'
                  and not exists (select from topic t where t.topic_id = n.topic_id)
                  and not exists (select from deleted_topic d where d.topic_id = n.topic_id)
               ) u) f
    where f.nth <= at_most
    order by f."check", f.nth;
end;

-- Takes no lock, reads the catalog of PostgreSQL, writes nothing, returns whether the table has a valid index
-- on just these columns: unique and of all rows, or of some rows.
create or replace function has_index("table" oid, columns text, partial boolean) returns boolean
language sql stable set search_path from current
begin atomic
    select exists (
        select from pg_catalog.pg_index x
        where x.indrelid = has_index."table" and x.indisvalid
          and (x.indpred is not null) = has_index.partial and (x.indisunique or has_index.partial)
          and (select string_agg(a.attname::text, ',' order by k.n)
               from unnest(x.indkey::int2[]) with ordinality k (attnum, n)
               join pg_catalog.pg_attribute a on a.attrelid = x.indrelid and a.attnum = k.attnum)
              = has_index.columns);
end;

-- Takes no lock beyond ACCESS SHARE on the active leaves; reads the catalogs and the tips of the topic's
-- partitions, writes nothing, returns what is wrong in the catalog.
create or replace function verify_catalog(topic_id int4, at_most int4 default 20)
returns setof verify_finding
language sql stable security definer set search_path from current
begin atomic
    with t as (
        select t.*, effective_configs(t.configs) as effective
        from topic t where t.topic_id = verify_catalog.topic_id),
    p as (select p.* from topic_partition p where p.topic_id = verify_catalog.topic_id),
    s as (select s.* from topic_segment s where s.topic_id = verify_catalog.topic_id),
    ends as (
        select e.* from (select array_agg(p.topic_id) as ids, array_agg(p.partition) as partitions from p) a,
            lateral partition_tips(a.ids, a.partitions) e),
    -- The offsets that the catalog says each partition has, segment by segment.
    spans as (
        select z.partition, z.segment, z.first_offset, z.last_offset + 1 as next_offset
        from sealed_segment z where z.topic_id = verify_catalog.topic_id
        union all
        select p.partition, p.segment, p.segment_start, null from p),
    chain as (
        select spans.*, lag(spans.next_offset) over (
                   partition by spans.partition order by spans.next_offset nulls last) as expected
        from spans),
    leaf as (
        select s.segment, c.oid, i.inhparent, i.inhdetachpending,
               pg_catalog.pg_get_expr(c.relpartbound, c.oid) as bound,
               has_index(c.oid, 'partition,last_offset', false) as offsets,
               has_index(c.oid, 'partition,producer_id,last_offset', true) as producers
        from s left join pg_catalog.pg_class c
            on c.relname = 'b_' || verify_catalog.topic_id || '_' || s.segment and c.relkind = 'r'
               and c.relnamespace = pg_catalog.to_regnamespace(quote_ident(current_schema()))
        left join pg_catalog.pg_inherits i on i.inhrelid = c.oid),
    parent as (
        select c.oid, i.inhparent from pg_catalog.pg_class c
        left join pg_catalog.pg_inherits i on i.inhrelid = c.oid
        where c.relname = 'b_' || verify_catalog.topic_id and c.relkind = 'p'
          and c.relnamespace = pg_catalog.to_regnamespace(quote_ident(current_schema()))),
    findings as (
        select 'catalog' as "check", coalesce(p.partition, w.n) as partition, null::int4 as segment,
               case when p.partition is null then 'this partition has no row in topic_partition'
                    else format('the topic has only %s partitions', (select t.partitions from t)) end as found
        from (select generate_series(0, t.partitions - 1) as n from t) w
        full join p on p.partition = w.n where p.partition is null or w.n is null
        union all
        select 'catalog', null, t.active_segment, 'the active segment has no row in topic_segment'
        from t where not exists (select from s where s.segment = t.active_segment)
        union all
        select 'catalog', p.partition, p.segment, 'the partition is in a segment that the topic does not have'
        from p, t where p.segment > t.active_segment or not exists (select from s where s.segment = p.segment)
        union all
        select 'catalog', z.partition, z.segment, 'sealed_segment has a segment that the topic does not have'
        from sealed_segment z where z.topic_id = verify_catalog.topic_id
            and not exists (select from s where s.segment = z.segment)
        union all
        select 'configs', null, null,
               format('%s is %s, but the configs say %s', c.name, c.compiled, c.configured)
        from t, lateral (values
            ('segment_bytes', t.segment_bytes::text, t.effective ->> 'segment.bytes'),
            ('max_message_bytes', t.max_message_bytes::text, t.effective ->> 'max.message.bytes'),
            ('timestamp_type', (array['CreateTime', 'LogAppendTime'])[t.timestamp_type + 1],
             t.effective ->> 'message.timestamp.type'),
            ('timestamp_before_max', t.timestamp_before_max::text,
             t.effective ->> 'message.timestamp.before.max.ms'),
            ('timestamp_after_max', t.timestamp_after_max::text,
             t.effective ->> 'message.timestamp.after.max.ms'),
            ('min_insync_replicas', t.min_insync_replicas::text, t.effective ->> 'min.insync.replicas')
        ) c (name, compiled, configured) where c.compiled is distinct from c.configured
        union all
        select 'leaves', null, leaf.segment, case
            when leaf.oid is null then 'the table of this segment is not there'
            when leaf.inhparent is distinct from (select parent.oid from parent) or leaf.inhdetachpending
                then 'the table of this segment is not attached to the topic''s'
            when leaf.bound <> format('FOR VALUES IN (%s)', leaf.segment)
                then format('the table of this segment is attached %s', leaf.bound)
            when not leaf.offsets
                then 'the table of this segment has no valid unique index on (partition, last_offset)'
            else 'the table of this segment has no valid index on (partition, producer_id, last_offset)' end
        from leaf
        where leaf.oid is null or leaf.inhparent is distinct from (select parent.oid from parent)
           or leaf.inhdetachpending or leaf.bound <> format('FOR VALUES IN (%s)', leaf.segment)
           or not leaf.offsets or not leaf.producers
        union all
        select 'leaves', null, null, 'the topic''s table is not attached to that of all topics'
        from t where (select parent.inhparent from parent) is distinct from 'batches'::regclass::oid
        union all
        select 'leaves', null, split_part(c.relname, '_', 3)::int4,
               format('table %s belongs to no segment', c.relname)
        from pg_catalog.pg_class c
        where c.relname ~ ('^b_' || verify_catalog.topic_id || '_[0-9]{1,9}$') and c.relkind = 'r'
          and c.relnamespace = pg_catalog.to_regnamespace(quote_ident(current_schema()))
          and not exists (select from s where s.segment = split_part(c.relname, '_', 3)::int4)
          and not exists (select from dropped_segment d
                          where d.topic_id = verify_catalog.topic_id
                            and d.segment = split_part(c.relname, '_', 3)::int4)
        union all
        select 'sealed', chain.partition, chain.segment,
               format('it begins at offset %s, but the one before ends in front of %s', chain.first_offset,
                      chain.expected)
        from chain join p on p.partition = chain.partition
        -- A segment that another partition still needs stays, those after it go when they are all past.
        where chain.first_offset < chain.expected
           or chain.first_offset > chain.expected and chain.first_offset > greatest(p.log_start, p.local_start)
        union all
        -- What lies below the log start may be gone.
        select 'sealed', chain.partition, chain.segment,
               format('the first offset there is is %s, but the log starts at %s', chain.first_offset,
                      greatest(p.log_start, p.local_start))
        from chain join p on p.partition = chain.partition
        where chain.expected is null and chain.first_offset > greatest(p.log_start, p.local_start)
        union all
        select 'watermark', e.partition, e.segment,
               format('the log starts at %s and ends at %s', e.log_start, e.end_offset)
        from ends e where not (e.log_start >= 0 and e.log_start <= e.end_offset))
    select f."check", (select t.name from t), f.partition, f.segment, null::int8, null::text, f.found, f.total
    from (select u.*, count(*) over (partition by u."check") as total,
                 row_number() over (partition by u."check" order by u.partition, u.segment, u.found) as nth
          from findings u) f
    where f.nth <= at_most and exists (select from t)
    order by f."check", f.nth;
end;

-- Takes no lock beyond ACCESS SHARE; reads every batch of one segment, with or without its arrays, writes
-- nothing, returns what is wrong with them and with what the catalog says of the segment. Needs memory for
-- one row a batch, arrays not among it, and no more than work_mem. Nothing, if the table is not there.
create or replace function verify_segment(
    topic_id int4, segment int4, arrays boolean default true, at_most int4 default 20)
returns setof verify_finding
language plpgsql stable security definer set search_path from current as $$
declare
    -- By compaction or erasure: then there may be fewer records than offsets, down to none.
    rewritten constant boolean := coalesce((
        select s.rewritten from topic_segment s
        where s.topic_id = verify_segment.topic_id and s.segment = verify_segment.segment), false);
begin
    if to_regclass('b_' || topic_id || '_' || segment) is null then
        return;
    end if;
    return query execute format($leaf$
        with place as (
            select p.partition, p.leader_epoch, p.segment as current_segment,
                   coalesce(z.first_offset, case when p.segment = $2 then p.segment_start end) as first_offset
            from topic_partition p left join sealed_segment z
                on z.topic_id = p.topic_id and z.partition = p.partition and z.segment = $2
            where p.topic_id = $1),
        judged as (
            select r.partition, r.base_offset as "offset", c."check", c.found
            from (
                select b.*, p.partition is not null as known, p.first_offset,
                       p.leader_epoch as newest_epoch,
                       lag(b.last_offset) over w + 1 as next_offset,
                       lag(b.leader_epoch) over w as before_epoch,
                       lag(b.append_time) over w as before_time,
                       lag(b.segment_max_timestamp) over w as before_max,
                       lag(b.segment_min_timestamp) over w as before_min,
                       lag(b.segment_disorder) over w as before_disorder,
                       lag(b.segment_bytes) over w as before_bytes,
                       max(b.base_offset) filter (where not is_safe(b.xact, (select coalesce(safe_limit(), (newest_seal()).confirmed))))
                           over (w rows between unbounded preceding and 1 preceding) as hidden_offset
                from (
                    select l.partition, l.base_offset, l.last_offset, l.xact, l.producer_id,
                           l.append_time, l.max_timestamp, l.segment_max_timestamp, l.segment_min_timestamp,
                           l.segment_disorder, l.segment_bytes, l.record_count, l.leader_epoch,
                           l.base_sequence, l.last_sequence, l.size_bytes, l.producer_epoch,
                           l.timestamp_type, l.timestamps is null as stamped_once,
                           -- The arrays are looked at here, so that the window does not carry them.
                           case when $3 then array_fits(l.timestamps, l.record_count)
                                and array_fits(l.keys, l.record_count)
                                and array_fits(l."values", l.record_count)
                                and (l.header_records is null and l.header_keys is null
                                     and l.header_values is null
                                     or headers_fit(l.record_count, l.header_records, l.header_keys,
                                                    l.header_values)) else true end as fits,
                           case when l.offset_deltas is null
                                then l.record_count = l.last_offset - l.base_offset + 1
                                     or $5 and l.record_count = 0
                                when $3 then array_fits(l.offset_deltas, l.record_count)
                                and l.offset_deltas[1] >= 0
                                and l.offset_deltas[l.record_count] <= l.last_offset - l.base_offset
                                and l.offset_deltas = array(
                                    select distinct d from unnest(l.offset_deltas) d order by d)
                                else true end as spans,
                           case when $3 and l.timestamps is not null
                                then l.max_timestamp >= all (l.timestamps)
                                     and l.max_timestamp = any (l.timestamps)
                                else true end as largest,
                           case when l.record_count = 0 then 253402300799999
                                when l.timestamps is null then l.max_timestamp
                                when not $3 then null
                                when l.timestamps[1] <= all (l.timestamps) then l.timestamps[1]
                                else (select min(u) from unnest(l.timestamps) u) end as min_timestamp
                    from %I l offset 0) b
                left join place p on p.partition = b.partition
                window w as (partition by b.partition order by b.last_offset)) r
            cross join lateral (values
                ('catalog', case when not r.known then 'a batch of a partition that the topic does not have'
                            end),
                ('gap', case when r.base_offset > coalesce(r.next_offset, r.first_offset) then
                    format('offsets %%s to %%s are in no batch', coalesce(r.next_offset, r.first_offset),
                           r.base_offset - 1) end),
                ('overlap', case when r.base_offset < coalesce(r.next_offset, r.first_offset) then
                    format('the batch begins at %%s, but the one before ends at %%s', r.base_offset,
                           coalesce(r.next_offset, r.first_offset) - 1) end),
                ('counts', case when r.record_count < case when $5 then 0 else 1 end
                        or r.spans is not true then
                    format('the batch spans offsets %%s to %%s, but has %%s records', r.base_offset,
                           r.last_offset, r.record_count)
                    when r.fits is not true then
                    format('an array of the batch does not fit its %%s records', r.record_count) end),
                ('timestamps', case when r.largest is not true then
                    format('max_timestamp, %%s, is not the largest time stamp', r.max_timestamp)
                    when r.min_timestamp < 0 or r.max_timestamp > 253402300799999 then
                    format('time stamps from %%s to %%s are no times', r.min_timestamp, r.max_timestamp)
                    when r.timestamp_type not in (0, 1)
                        or r.timestamp_type = 1 and not $5
                           and (not r.stamped_once or r.max_timestamp <> r.append_time)
                    then 'the time stamps are not the append time, though timestamp_type says so' end),
                -- Only where the batch before is there: else the gap has been found already.
                ('running', case when r.base_offset = coalesce(r.next_offset, r.first_offset) then nullif(
                    concat_ws(', ',
                        running_fault('segment_bytes', r.segment_bytes,
                                      coalesce(r.before_bytes, 0) + r.size_bytes),
                        running_fault('segment_max_timestamp', r.segment_max_timestamp,
                                      greatest(r.before_max, r.max_timestamp)),
                        case when r.min_timestamp is not null then
                            running_fault('segment_min_timestamp', r.segment_min_timestamp,
                                          least(r.before_min, r.min_timestamp)) end,
                        case when r.min_timestamp is not null then
                            running_fault('segment_disorder', r.segment_disorder, greatest(
                                r.before_disorder, 0,
                                greatest(r.before_max, r.max_timestamp) - r.min_timestamp)) end), '') end),
                ('epochs', case when r.leader_epoch < r.before_epoch then
                    format('leader epoch %%s comes after %%s', r.leader_epoch, r.before_epoch)
                    when r.leader_epoch > r.newest_epoch or r.leader_epoch < 0 then
                    format('leader epoch %%s, but the partition is at %%s', r.leader_epoch, r.newest_epoch)
                    end),
                ('sequences', case when num_nulls(r.producer_id, r.producer_epoch, r.base_sequence,
                                                  r.last_sequence) not in (0, 4)
                    then 'producer_id, producer_epoch, base_sequence and last_sequence go together'
                    when r.last_sequence <> ((r.base_sequence::int8 + r.record_count - 1) & 2147483647) then
                    format('sequences %%s to %%s are not those of %%s records', r.base_sequence,
                           r.last_sequence, r.record_count) end),
                ('watermark', case when r.xact <= 2 then format('transaction %%s appends nothing', r.xact)
                    -- Without a number nobody promised anything: that may come after what was promised.
                    when r.hidden_offset is not null and r.xact is not null
                         and is_safe(r.xact, (select coalesce(safe_limit(), (newest_seal()).confirmed))) then
                    format('transaction %%s may be read, but not the batch at %%s before it', r.xact,
                           r.hidden_offset) end),
                ('clock', case when r.append_time < r.before_time then
                    format('appended at %%s ms, %%s ms before the batch before it', r.append_time,
                           r.before_time - r.append_time) end)
            ) c ("check", found)
            where c.found is not null
            union all
            -- What the catalog says of the segment, against its last batch.
            select coalesce(p.partition, z.partition), l.base_offset, 'sealed', case
                when p.partition is null then 'sealed_segment has a partition that the topic does not have'
                when z.partition is null and p.current_segment > $2 then 'the closed segment has no row'
                when z.partition is null then 'the partition has not entered this segment, but has batches'
                when p.current_segment = $2 then 'the segment has a row as if it were closed'
                when l.last_offset is null then
                    format('offsets %%s to %%s are not there', z.first_offset, z.last_offset)
                when z.records <> n.records then
                    format('%%s records, but the catalog says %%s', n.records, z.records)
                when l.last_offset <> z.last_offset then
                    format('the last offset is %%s, but the catalog says %%s', l.last_offset, z.last_offset)
                else format('bytes %%s, time stamps %%s to %%s, disorder %%s; the catalog says %%s, %%s to '
                            '%%s, %%s', l.segment_bytes, l.segment_min_timestamp, l.segment_max_timestamp,
                            l.segment_disorder, z.bytes, z.min_timestamp, z.max_timestamp, z.disorder) end
            from place p
            full join (select s.* from sealed_segment s where s.topic_id = $1 and s.segment = $2) z
                on z.partition = p.partition
            left join lateral (
                select b.* from %I b where b.partition = coalesce(p.partition, z.partition)
                order by b.last_offset desc limit 1) l on true
            left join lateral (
                select sum(b.record_count) as records from %I b
                where b.partition = z.partition and z.records is not null) n on true
            where case when z.partition is null then l.partition is not null and p.current_segment <> $2
                       else p.partition is null or p.current_segment = $2
                           or z.records <> n.records
                           or (l.last_offset, l.segment_bytes, l.segment_min_timestamp,
                               l.segment_max_timestamp, l.segment_disorder)
                              is distinct from (z.last_offset, z.bytes, z.min_timestamp, z.max_timestamp,
                                                z.disorder) end)
        select f."check", (select t.name from topic t where t.topic_id = $1), f.partition, $2, f."offset",
               null::text, f.found, f.total
        from (select j.*, count(*) over (partition by j."check") as total,
                     row_number() over (partition by j."check" order by j.partition, j."offset") as nth
              from judged j) f
        where f.nth <= $4 order by f."check", f.nth
        $leaf$, 'b_' || topic_id || '_' || segment, 'b_' || topic_id || '_' || segment,
        'b_' || topic_id || '_' || segment)
        using topic_id, segment, arrays, at_most, rewritten;
end
$$;

-- Takes no lock, reads and writes nothing, returns what is wrong with a column that follows from the batch
-- before, null: nothing.
create or replace function running_fault(name text, found int8, expected int8) returns text
language sql immutable set search_path from current
return case when found is distinct from expected then format('%s is %s, not %s', name, found, expected) end;

-- Takes no lock beyond ACCESS SHARE; reads the claims and commits of groups on one topic, writes nothing,
-- returns what does not fit the log.
create or replace function verify_groups(topic_id int4, at_most int4 default 20)
returns setof verify_finding
language sql stable security definer set search_path from current
begin atomic
    with ends as (
        select e.* from (select array_agg(p.topic_id) as ids, array_agg(p.partition) as partitions
                         from topic_partition p where p.topic_id = verify_groups.topic_id) a,
            lateral partition_tips(a.ids, a.partitions) e),
    commits as (
        select o.*, coalesce(g.name, o.group_id::text) as name, g.group_id is not null as known,
               e.log_start, e.end_offset, e.leader_epoch as newest_epoch, e.partition is not null as there,
               c.claim_epoch as newest_claim
        from group_offset o
        left join log_group g on g.group_id = o.group_id
        left join ends e on e.partition = o.partition
        left join group_claim c on (c.group_id, c.topic_id, c.partition)
                                   = (o.group_id, o.topic_id, o.partition)
        where o.topic_id = verify_groups.topic_id),
    findings as (
        select 'offsets' as "check", o.partition, o.committed_offset as "offset", o.name as "group", case
            when not o.known then 'the offset belongs to a group that there is not'
            when not o.there then 'the topic does not have this partition'
            else format('%s is committed, but the log ends at %s', o.committed_offset, o.end_offset) end
            as found
        from commits o
        where not o.known or not o.there or o.committed_offset > o.end_offset or o.committed_offset < 0
        union all
        select 'expired', o.partition, o.committed_offset, o.name,
               format('%s is committed, but the log starts at %s', o.committed_offset, o.log_start)
        from commits o where o.committed_offset < o.log_start and o.committed_offset >= 0
        union all
        select 'epochs', o.partition, o.committed_offset, o.name,
               format('the offset was committed under leader epoch %s, but the partition is at %s',
                      o.leader_epoch, o.newest_epoch)
        from commits o where o.leader_epoch > o.newest_epoch
        union all
        select 'claims', o.partition, o.committed_offset, o.name,
               format('the offset was committed under claim epoch %s, but the claim is at %s', o.claim_epoch,
                      coalesce(o.newest_claim::text, 'none'))
        from commits o where o.claim_epoch > coalesce(o.newest_claim, 0) and o.known
        union all
        select 'claims', c.partition, null, coalesce(g.name, c.group_id::text), case
            when g.group_id is null then 'the claim belongs to a group that there is not'
            else format('the targets were computed for epoch %s, but the group is at %s', g.assigned_epoch,
                        g.group_epoch) end
        from group_claim c left join log_group g on g.group_id = c.group_id
        where c.topic_id = verify_groups.topic_id
          and (g.group_id is null or g.assigned_epoch > g.group_epoch))
    select f."check", t.name, f.partition, null::int4, f."offset", f."group", f.found, f.total
    from topic t,
        (select u.*, count(*) over (partition by u."check") as total,
                row_number() over (partition by u."check" order by u."group", u.partition) as nth
         from findings u) f
    where t.topic_id = verify_groups.topic_id and f.nth <= at_most
    order by f."check", f.nth;
end;

-- Takes no lock beyond ACCESS SHARE; reads the state of share groups on one topic, writes nothing, returns
-- what lies outside of their windows or overlaps.
create or replace function verify_share(topic_id int4, at_most int4 default 20)
returns setof verify_finding
language sql stable security definer set search_path from current
begin atomic
    with ends as (
        select e.* from (select array_agg(p.topic_id) as ids, array_agg(p.partition) as partitions
                         from topic_partition p where p.topic_id = verify_share.topic_id) a,
            lateral partition_tips(a.ids, a.partitions) e),
    windows as (
        select w.*, count(*) over (partition by w.group_id, w.partition) as versions
        from share_window w where w.topic_id = verify_share.topic_id),
    ranges as (
        select f.group_id, f.partition, f.first_offset, f.last_offset, f.key_hash, f.delivery_count,
               false as delayed
        from share_flight f where f.topic_id = verify_share.topic_id
        union all
        select d.group_id, d.partition, d.first_offset, d.last_offset, d.key_hash, d.delivery_count, true
        from share_delay d where d.topic_id = verify_share.topic_id),
    walked as (
        select r.*, max(r.last_offset) over (
                   partition by r.group_id, r.partition order by r.first_offset, r.last_offset
                   rows between unbounded preceding and 1 preceding) as before
        from ranges r),
    findings as (
        select w.group_id, w.partition, w.end_offset as "offset", case
            when w.versions > 1 then 'the partition has more than one window'
            when e.partition is null then 'the topic does not have this partition'
            when w.start_offset > w.end_offset then
                format('the window starts at %s and ends at %s', w.start_offset, w.end_offset)
            else format('the window ends at %s, but the log ends at %s', w.end_offset, e.end_offset) end
            as found
        from windows w left join ends e on e.partition = w.partition
        where w.versions > 1 or e.partition is null or w.start_offset > w.end_offset
           or w.end_offset > e.end_offset
        union all
        select r.group_id, r.partition, r.first_offset, case
            when r.last_offset < r.first_offset then format('the range ends at %s', r.last_offset)
            when r.before >= r.first_offset then 'the record is in two ranges'
            when w.group_id is null then 'the record is in flight, but the partition has no window'
            when r.key_hash is not null and r.last_offset > r.first_offset
                then 'a range of several records has the key of one'
            else format('offsets %s to %s lie outside of the window, %s to %s', r.first_offset,
                        r.last_offset, w.start_offset, w.end_offset - 1) end
        from walked r left join windows w on w.group_id = r.group_id and w.partition = r.partition
        where r.last_offset < r.first_offset or r.before >= r.first_offset or w.group_id is null
           or r.key_hash is not null and r.last_offset > r.first_offset
           or r.last_offset >= w.end_offset or not r.delayed and r.first_offset < w.start_offset)
    select 'share'::text, t.name, f.partition, null::int4, f."offset", coalesce(g.name, f.group_id::text),
           f.found, f.total
    from topic t,
        (select u.*, count(*) over () as total,
                row_number() over (order by u.group_id, u.partition, u."offset") as nth
         from findings u) f
    left join log_group g on g.group_id = f.group_id
    where t.topic_id = verify_share.topic_id and f.nth <= at_most
    order by f.nth;
end;

-- Takes no lock; reads the catalog, writes nothing, returns the segments of the topics (null: of all), in the
-- order of topic and segment, with the bytes that auditing one has to read.
create or replace function verify_plan(topics text[] default null)
returns table (topic text, topic_id int4, partitions int4, segment int4, bytes int8)
language sql stable security definer set search_path from current
begin atomic
    select t.name, t.topic_id, t.partitions, s.segment,
           coalesce(pg_catalog.pg_table_size(to_regclass('b_' || t.topic_id || '_' || s.segment)), 0)
    from topic t left join topic_segment s on s.topic_id = t.topic_id and s.live
    where verify_plan.topics is null or t.name = any (verify_plan.topics)
    order by t.name, s.segment;
end;
