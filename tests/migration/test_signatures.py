"""What clients of earlier releases call is still there, with the same arguments and the same columns.

Adding a function, a trailing argument with a default or a trailing column is fine.  Anything else strands the
clients that are out there: give the new thing a new name, and keep the old one for a release.
"""

from __future__ import annotations

import psycopg

PROMISED = {
    "info": ("", "revision text, fingerprint text, server_version_num integer, is_in_recovery boolean"),
    "schema_version": ("", "text"),
    "metadata": (
        "topics text[]",
        (
            "topic text, topic_id integer, partitions integer, timestamp_type smallint, max_message_bytes"
            " integer, configs jsonb"
        ),
    ),
    "append": (
        (
            "topic_id integer, partition integer, record_count integer, max_timestamp bigint, timestamps"
            ' bigint[], keys bytea[], "values" bytea[], header_records integer[], header_keys text[],'
            " header_values bytea[], acks smallint, producer_id bigint, producer_epoch smallint,"
            " base_sequence integer, leader_epoch integer"
        ),
        "bigint[]",
    ),
    "fetch": (
        (
            "topic_ids integer[], partitions integer[], offsets bigint[], max_bytes integer,"
            " max_partition_bytes integer"
        ),
        (
            "idx integer, log_start bigint, high_watermark bigint, base_offset bigint, last_offset bigint,"
            " record_count integer, leader_epoch integer, timestamp_type smallint, max_timestamp bigint,"
            ' timestamps bigint[], keys bytea[], "values" bytea[], header_records integer[], header_keys'
            " text[], header_values bytea[], offset_deltas integer[]"
        ),
    ),
    "high_watermarks": (
        "topic_ids integer[], partitions integer[]",
        "idx integer, log_start bigint, high_watermark bigint",
    ),
    "list_offsets": (
        "topic_ids integer[], partitions integer[], specs bigint[]",
        'idx integer, "offset" bigint, "timestamp" bigint, leader_epoch integer',
    ),
    "create_topic": ("name text, partitions integer, configs jsonb, if_not_exists boolean", "integer"),
    "alter_topic": ("name text, set_configs jsonb, unset text[]", "void"),
    "add_partitions": ("name text, total integer", "void"),
    "delete_topic": ("name text", "void"),
    "delete_records": ("topic text, partition integer, before_offset bigint", "bigint"),
    "describe_configs": (
        "topic text",
        (
            'name text, value text, "default" text, is_default boolean, type text, "values" text[], minimum'
            " text, maximum text, doc text"
        ),
    ),
    "wake": ("topic_ids integer[]", "void"),
    "waiting": ("topic_ids integer[]", "void"),
    "not_waiting": ("topic_ids integer[]", "void"),
    "read": (
        (
            "topic text, partition integer, from_offset bigint, to_offset bigint, from_time timestamp with"
            " time zone, to_time timestamp with time zone, max_records bigint"
        ),
        (
            'topic text, partition integer, "offset" bigint, "timestamp" timestamp with time zone, key bytea,'
            " value bytea, headers jsonb, key_text text, value_text text, value_json jsonb"
        ),
    ),
    "produce": ("topic text, key bytea, value bytea, headers jsonb, partition integer", "integer"),
}

SIGNATURES = """
    SELECT p.proname, pg_get_function_identity_arguments(p.oid),
           CASE WHEN NOT p.proretset THEN format_type(p.prorettype, NULL)
                WHEN p.proargmodes IS NULL THEN (
                    SELECT string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, NULL), ', '
                                      ORDER BY a.attnum)
                    FROM pg_attribute a JOIN pg_type t ON t.typrelid = a.attrelid
                    WHERE t.oid = p.prorettype AND a.attnum > 0)
                ELSE (SELECT string_agg(quote_ident(n) || ' ' || format_type(t, NULL), ', ' ORDER BY i)
                      FROM unnest(p.proargnames, p.proallargtypes, p.proargmodes)
                           WITH ORDINALITY u (n, t, m, i) WHERE m = 't') END
    FROM pg_proc p WHERE p.pronamespace = 'logstore'::regnamespace AND p.proname = ANY (%s)"""


def test_promised_functions(database: str) -> None:
    with psycopg.connect(database) as connection:
        found = connection.execute(SIGNATURES, [list(PROMISED)]).fetchall()
    for name, (arguments, result) in PROMISED.items():
        candidates = [(a, r) for n, a, r in found if n == name]
        assert any(a.startswith(arguments) and r.startswith(result) for a, r in candidates), (
            name,
            candidates,
        )
