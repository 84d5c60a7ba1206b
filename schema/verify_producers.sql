-- Auditing what idempotent producers have appended, and what is remembered of it.

-- Takes no lock beyond ACCESS SHARE; reads every batch of an idempotent producer in one topic, without its
-- arrays, and what is remembered of those in closed segments; writes nothing; returns where sequences do not
-- go on, and where memory and log differ. A producer that was silent for a day is forgotten, as in Kafka, and
-- may go on with any sequence.
create or replace function verify_producers(topic_id int4, at_most int4 default 20)
returns setof verify_finding
language plpgsql stable security definer set search_path from current as $$
begin
    if to_regclass('b_' || topic_id) is null then
        return;
    end if;
    return query execute format($topic$
        with numbered as (
            select b.partition, b.segment, b.base_offset, b.last_offset, b.producer_id, b.producer_epoch,
                   b.base_sequence, b.last_sequence, b.append_time,
                   lag(b.producer_epoch) over w as before_epoch,
                   lag(b.last_sequence) over w as before_sequence,
                   lag(b.append_time) over w as before_time, g.place, lag(g.place) over w as before_place
            from %I b join topic_segment g on g.topic_id = $1 and g.segment = b.segment and g.live
            where b.producer_id is not null
            window w as (partition by b.partition, b.producer_id order by b.last_offset)),
        -- What was written anew has lost its sequences.
        batch as (
            select n.*, exists (select from topic_segment o
                                where o.topic_id = $1 and o.live and o.rewritten
                                  and o.place between n.before_place and n.place) as interrupted
            from numbered n),
        -- The last batch of each producer in the segments that its partition has left.
        left_behind as (
            select distinct on (b.partition, b.producer_id) b.*
            from batch b join topic_partition p
                on p.topic_id = $1 and p.partition = b.partition and b.last_offset < p.segment_start
            order by b.partition, b.producer_id, b.last_offset desc),
        remembered as (
            select s.*, e.ordinal, s.base_sequences[e.ordinal] as base_sequence,
                   s.last_sequences[e.ordinal] as last_sequence, s.base_offsets[e.ordinal] as base_offset
            from producer_state s, lateral generate_series(1, cardinality(s.base_offsets)) e (ordinal)
            where s.topic_id = $1),
        finding as (
            select b.partition, b.segment, b.base_offset, case
                when b.producer_epoch < b.before_epoch then
                    format('producer %%s: epoch %%s comes after %%s', b.producer_id, b.producer_epoch,
                           b.before_epoch)
                when b.producer_epoch > b.before_epoch and b.base_sequence <> 0 and not b.interrupted then
                    format('producer %%s: epoch %%s begins with sequence %%s', b.producer_id,
                           b.producer_epoch, b.base_sequence)
                when b.producer_epoch = b.before_epoch and not b.interrupted
                     and b.base_sequence <> ((b.before_sequence::int8 + 1) & 2147483647)
                     and b.append_time - b.before_time < 86400000 then
                    format('producer %%s: sequence %%s comes after %%s', b.producer_id, b.base_sequence,
                           b.before_sequence)
                when b.producer_epoch > h.producer_epoch then
                    format('producer %%s: epoch %%s, but the transactional id %%s is at %%s', b.producer_id,
                           b.producer_epoch, to_json(h.transactional_id), h.producer_epoch) end as found
            from batch b left join producer h on h.producer_id = b.producer_id
            union all
            select l.partition, l.segment, l.base_offset,
                   format('producer %%s: nobody remembers its last batch in the closed segments',
                          l.producer_id)
            from left_behind l
            where extract(epoch from clock_timestamp()) * 1000 - l.append_time < 80000000
              and not exists (
                  select from producer_state s
                  where s.topic_id = $1 and s.partition = l.partition and s.producer_id = l.producer_id
                    and (s.base_offsets[cardinality(s.base_offsets)] = l.base_offset
                         or s.base_offsets[cardinality(s.base_offsets)] > l.base_offset
                            and exists (select from topic_segment o
                                        where o.topic_id = $1 and o.live and o.rewritten)))
            union all
            select r.partition, b.segment, r.base_offset,
                   format('producer %%s: epoch %%s, sequences %%s to %%s are remembered here, but the log '
                          'has producer %%s, epoch %%s, %%s to %%s', r.producer_id, r.producer_epoch,
                          r.base_sequence, r.last_sequence, b.producer_id, b.producer_epoch,
                          b.base_sequence, b.last_sequence)
            from remembered r join %I b on b.partition = r.partition and b.last_offset = r.base_offset
                 + ((r.last_sequence::int8 - r.base_sequence) & 2147483647)
            join topic_segment g on g.topic_id = $1 and g.segment = b.segment and g.live and not g.rewritten
            where (b.base_offset, b.producer_id, b.producer_epoch, b.base_sequence, b.last_sequence)
                  is distinct from (r.base_offset, r.producer_id, r.producer_epoch, r.base_sequence,
                                    r.last_sequence)
            union all
            select s.partition, null, s.base_offsets[1],
                   format('producer %%s: what is remembered of it does not fit together', s.producer_id)
            from producer_state s
            where s.topic_id = $1
              and (cardinality(s.base_offsets) between 1 and 5
                   and cardinality(s.base_sequences) = cardinality(s.base_offsets)
                   and cardinality(s.last_sequences) = cardinality(s.base_offsets)
                   and cardinality(s.append_times) = cardinality(s.base_offsets)
                   and s.base_offsets = array(select o from unnest(s.base_offsets) o order by o))
                  is not true)
        select 'sequences', (select t.name from topic t where t.topic_id = $1), f.partition, f.segment,
               f.base_offset, null::text, f.found, f.total
        from (select r.*, count(*) over () as total,
                     row_number() over (order by r.partition, r.base_offset) as nth
              from finding r where r.found is not null) f
        where f.nth <= $2 order by f.nth
        $topic$, 'b_' || topic_id, 'b_' || topic_id) using topic_id, at_most;
end
$$;
