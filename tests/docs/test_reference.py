"""The reference pages say what the code says.

A page holds each table between ``<!-- table: name -->`` and ``<!-- end -->``.  When the code has changed,
``WRITE_REFERENCE=1 pytest tests/docs`` writes them anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import logstore.cli.failures
from logstore.config import ProducerConfig
from logstore.consumer_config import ConsumerConfig
from tests.docs import reference_tables

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def compare(page: str, name: str, table: str) -> None:
    path = REFERENCE / page
    text = path.read_text()
    pattern = re.compile(rf"(<!-- table: {name} -->\n\n)(.*?)(\n\n<!-- end -->)", re.S)
    found = pattern.search(text)
    assert found, f"{page} has no table {name!r}"
    if os.environ.get("WRITE_REFERENCE"):
        path.write_text(text[: found.start(2)] + table + text[found.end(2) :])
        return
    assert found[2].splitlines() == table.splitlines(), f"{page}: run `WRITE_REFERENCE=1 pytest tests/docs`"


def test_producer_options() -> None:
    compare("producer.md", "options", reference_tables.options(ProducerConfig))


def test_consumer_options() -> None:
    compare("consumer.md", "options", reference_tables.options(ConsumerConfig))


def test_topic_configs(database: str) -> None:
    compare("topic-configs.md", "configs", reference_tables.topic_configs(database))


def test_errors() -> None:
    compare("errors.md", "errors", reference_tables.error_classes())


def test_exit_codes() -> None:
    docstring = logstore.cli.failures.__doc__
    assert docstring
    compare("exit-codes.md", "codes", reference_tables.exit_codes(docstring))
