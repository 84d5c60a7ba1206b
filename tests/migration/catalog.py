"""All that a schema consists of, as text that two schemas can be compared by."""

from __future__ import annotations

import re

import psycopg
from psycopg import sql

__all__ = ["catalog"]

PARTS = {
    "columns": (
        """
        SELECT c.relname, c.relkind, c.relpersistence, c.reloptions, c.relpartbound IS NOT NULL,
               row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum), a.attname,
               format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstorage, a.attcompression,
               a.attidentity, a.attcollation::regcollation, pg_get_expr(d.adbin, d.adrelid),
               replace(c.relacl::text, current_user, 'owner')
        FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = %(schema)s::regnamespace AND c.relkind NOT IN ('i', 'I', 't')"""
    ),
    "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname = %(name)s",
    "constraints": (
        """
        SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = %(schema)s::regnamespace"""
    ),
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = %(name)s",
    "functions": (
        """
        SELECT p.oid::regprocedure, pg_get_functiondef(p.oid), replace(p.proacl::text, current_user, 'owner')
        FROM pg_proc p WHERE p.pronamespace = %(schema)s::regnamespace AND p.prokind = 'f'"""
    ),
    "types": "SELECT typname, typtype FROM pg_type WHERE typnamespace = %(schema)s::regnamespace",
}


def catalog(
    connection: psycopg.Connection[tuple[object, ...]], schema: str = "logstore"
) -> dict[str, list[str]]:
    """Part by part, sorted, with the schema's name left out."""
    connection.execute("SELECT set_config('search_path', quote_ident(%s), true)", [schema])
    named = re.compile(rf"[\\'\"]*\b(?:{re.escape(schema)}|logstore)\b[\\'\"]*")
    found: dict[str, list[str]] = {}
    for part, query in PARTS.items():
        rows = connection.execute(query, {"schema": sql.Identifier(schema).as_string(), "name": schema})
        found[part] = sorted(named.sub("<schema>", " | ".join(map(str, row))) for row in rows)
    return found
