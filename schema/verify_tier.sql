-- Auditing the catalog of files; `logstore tier verify` reads the files themselves.

-- Takes no lock, reads the catalog, writes nothing, returns where files and what PostgreSQL has do not make one
-- log.
create or replace function verify_files(topic_id int4, at_most int4 default 20) returns setof verify_finding
language sql stable security definer set search_path from current
begin atomic
    with p as (
        select p.partition, p.log_start, p.local_start, e.end_offset
        from (select array_agg(q.topic_id) as ids, array_agg(q.partition) as partitions
              from topic_partition q where q.topic_id = verify_files.topic_id) a
        cross join lateral partition_tips(a.ids, a.partitions) e
        join topic_partition p on p.topic_id = e.topic_id and p.partition = e.partition),
    f as (
        select f.*, lag(f.last_offset) over (partition by f.partition order by f.last_offset) as before
        from remote_segment f where f.topic_id = verify_files.topic_id and f.state = 'copied'),
    -- What is in files only, as far as files go without a gap.
    chain as (
        select p.partition, p.log_start, p.local_start, f.first_offset, f.last_offset,
               greatest(p.log_start, lag(f.last_offset + 1, 1, p.log_start)
                   over (partition by p.partition order by f.last_offset)) as expected
        from p left join f on f.partition = p.partition and f.last_offset >= p.log_start
            and f.first_offset < p.local_start
        where p.local_start > p.log_start),
    findings as (
        select c.partition, c.expected as "offset",
               format('no file has the offsets from here to before %s, nor has PostgreSQL',
                      coalesce(c.first_offset, c.local_start)) as found
        from chain c where c.first_offset is null or c.first_offset > c.expected
        union all
        select c.partition, max(c.last_offset) + 1,
               format('no file has the offsets from here to before %s, nor has PostgreSQL', c.local_start)
        from chain c group by c.partition, c.local_start having max(c.last_offset) + 1 < c.local_start
        union all
        select f.partition, f.first_offset, format('file %s has offsets that an earlier file has', f.file_id)
        from f where f.first_offset <= f.before
        union all
        select f.partition, f.first_offset, format('what is known of file %s does not fit together', f.file_id)
        from f
        where f.first_offset > f.last_offset or f.records > f.last_offset - f.first_offset + 1
           or cardinality(f.part_ends) <> cardinality(f.part_sha256)
           or cardinality(f.group_last_offsets) <> cardinality(f.group_max_timestamps)
           or cardinality(f.part_ends) <> cardinality(f.group_last_offsets) + 1
           or f.part_ends[cardinality(f.part_ends)] <> f.bytes
        union all
        select f.partition, f.first_offset, format('file %s is of a partition that there is not', f.file_id)
        from f where not exists (select from p where p.partition = f.partition)
        union all
        select p.partition, p.local_start, 'what is in PostgreSQL begins behind the end of the log'
        from p where p.local_start > p.end_offset)
    select 'files', (select t.name from topic t where t.topic_id = verify_files.topic_id), n.partition, null::int4,
           n."offset", null::text, n.found, n.total
    from (select g.*, count(*) over () as total, row_number() over (order by g.partition, g."offset", g.found) as nth
          from findings g) n
    where n.nth <= at_most
    order by n.nth;
end;
