"""The page on share consumers says what the code says."""

from __future__ import annotations

import psycopg

from logstore import ShareConsumer
from logstore._sync.share_admin import ShareAdmin
from logstore.share_config import ShareConsumerConfig
from tests.docs import reference_tables
from tests.docs.test_reference import compare

PAGE = "share-consumer.md"


def test_options() -> None:
    compare(PAGE, "options", reference_tables.options(ShareConsumerConfig))


def test_methods() -> None:
    compare(PAGE, "methods", reference_tables.methods(ShareConsumer))


def test_methods_for_administrators() -> None:
    compare(PAGE, "admin", reference_tables.methods(ShareAdmin))


def test_configs(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        found = connection.execute(
            'SELECT name, type, "default", minimum, maximum, doc FROM logstore.share_config ORDER BY name'
        ).fetchall()
    allowed = {
        "boolean": "`true`, `false`",
        "reset": "`earliest`, `latest`, `by_duration:PT1H`, …",
        "topic": "a topic, or empty",
    }
    rows = [
        (
            f"`{name}`",
            f"`{default}`" if default else "empty",
            allowed.get(kind, f"{minimum} to {maximum}"),
            doc,
        )
        for name, kind, default, minimum, maximum, doc in found
    ]
    compare(PAGE, "configs", reference_tables.table(("config", "default", "allowed", "meaning"), rows))
