"""The SQL objects of the log: functions and views, as they are today.

One object or small family a file.  The texts use unqualified names and say nothing of the schema they live
in: the installer (:mod:`logstore.migrations`) sets ``search_path`` first.  Tables change by migrations, not
here.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Final

__all__ = ["INSTALL_ORDER", "fingerprint", "install_text", "topics_schema", "uninstall_text"]

INSTALL_ORDER: Final = (
    "errors",
    "server",
    "watermark",
    "epochs",
    "configs",
    "segments",
    "records",
    "topics",
    "quotas",
    "append",
    "producers",
    "fetch",
    "tier",
    "views",
    "replicas",
    "offsets",
    "read",
    "staging",
    "produce",
    "capture",
    "wake",
    "retention",
    "rewrite",
    "compaction",
    "erasure",
    "latest",
    "tier_restore",
    "reclaim",
    "reserve",
    "group_heartbeats",
    "group_assign",
    "group_membership",
    "group_offsets",
    "transactions",
    "mirror",
    "mirror_source",
    "group_views",
    "share_configs",
    "share_log",
    "share_dead_letters",
    "share_window",
    "share_acquire",
    "share_acknowledge",
    "share_admin",
    "share_views",
    "expiry",
    "statistics",
    "worker",
    "verify",
    "verify_producers",
    "verify_tier",
    "recovery",
    "info",
)
"""A file needs only what the ones before it define, as far as PostgreSQL checks that on creation."""


def read(name: str) -> str:
    """The text of one file, named without its suffix."""
    return (resources.files(__name__) / f"{name}.sql").read_text(encoding="utf-8")


@cache
def fingerprint() -> str:
    """Identifies the texts: 16 hexadecimal digits, different whenever any of them is."""
    digest = hashlib.sha256()
    for name in INSTALL_ORDER:
        digest.update(read(name).encode())
    return digest.hexdigest()[:16]


def install_text() -> str:
    """One script that creates or replaces everything, and with it ``schema_fingerprint()``.

    To be run in a transaction whose ``search_path`` is the log's schema, then ``pg_temp``.
    """
    stamp = f"""
-- Takes no lock, reads and writes nothing, returns what identifies the installed functions.
create or replace function schema_fingerprint() returns text
language sql immutable set search_path from current
return '{fingerprint()}';
"""
    return stamp + "\n".join(read(name) for name in INSTALL_ORDER) + _NOT_FOR_EVERYBODY


def uninstall_text() -> str:
    """One script that drops every function and view of the log, and the views of its topics.

    To be run in a transaction whose ``search_path`` is the log's schema, then ``pg_temp``.
    """
    return _UNINSTALL


def topics_schema(schema: str) -> str:
    """The schema that has one view a topic."""
    return f"{schema}_topics"


_NOT_FOR_EVERYBODY: Final = """
do $revoke$
declare
    routine regprocedure;
begin
    for routine in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace = quote_ident(current_schema())::regnamespace and p.proacl is null
    loop
        execute format('revoke all on routine %s from public', routine);
    end loop;
end
$revoke$;
"""

_UNINSTALL: Final = """
do $uninstall$
declare
    command text;
begin
    -- All the names first: dropping one drops those that use it, and then there is no name to be had.
    foreach command in array array(
        select format('drop view if exists %s cascade', c.oid::regclass) from pg_catalog.pg_class c
        where c.relkind = 'v' and c.relnamespace::regnamespace::text in
              (quote_ident(current_schema()), quote_ident(current_schema() || '_topics'))) loop
        execute command;
    end loop;
    foreach command in array array(
        select format('drop routine if exists %s cascade', p.oid::regprocedure)
        from pg_catalog.pg_proc p where p.pronamespace = quote_ident(current_schema())::regnamespace) loop
        execute command;
    end loop;
end
$uninstall$;
"""
