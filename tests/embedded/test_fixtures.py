"""The fixtures of this suite do what they say."""

from __future__ import annotations

import psycopg
import pytest


@pytest.mark.every_server
def test_database(database: str) -> None:
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT current_user, current_setting('is_superuser')").fetchone()
    assert row == ("logstore", "off")
