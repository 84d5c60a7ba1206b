"""The reference pages say what the code says.

A page holds each table between ``<!-- table: name -->`` and ``<!-- end -->``.  When the code has changed,
``WRITE_REFERENCE=1 pytest tests/docs`` writes them anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import logstore.cli.failures
from logstore import Admin, Consumer, Producer
from logstore.admin_config import AdminConfig
from logstore.config import ProducerConfig
from logstore.consumer_config import ConsumerConfig
from tests.docs import reference_tables

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def compare(page: str, name: str, table: str) -> None:
    path = REFERENCE / page
    text = path.read_text()
    pattern = re.compile(rf"(?<=<!-- table: {name} -->\n)(.*?)(?=\n<!-- end -->)", re.S)
    found = pattern.search(text)
    assert found, f"{page} has no table {name!r}"
    if os.environ.get("WRITE_REFERENCE"):
        path.write_text(f"{text[: found.start()]}\n{table}\n{text[found.end() :]}")
        return
    assert found[1].strip() == table, f"{page}: run `WRITE_REFERENCE=1 pytest tests/docs`"


@pytest.mark.parametrize(
    ("page", "kind"),
    [("producer.md", ProducerConfig), ("consumer.md", ConsumerConfig), ("admin.md", AdminConfig)],
)
def test_options(page: str, kind: type[Any]) -> None:
    compare(page, "options", reference_tables.options(kind))


@pytest.mark.parametrize(
    ("page", "client"), [("producer.md", Producer), ("consumer.md", Consumer), ("admin.md", Admin)]
)
def test_methods(page: str, client: type[Any]) -> None:
    compare(page, "methods", reference_tables.methods(client))


def test_topic_configs(database: str) -> None:
    compare("topic-configs.md", "configs", reference_tables.topic_configs(database))


def test_errors() -> None:
    compare("errors.md", "errors", reference_tables.error_classes())


def test_exit_codes() -> None:
    docstring = logstore.cli.failures.__doc__
    assert docstring
    compare("exit-codes.md", "codes", reference_tables.exit_codes(docstring))
