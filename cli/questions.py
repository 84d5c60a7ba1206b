"""The three questions that the demo asks SQL about the web server's log."""

from __future__ import annotations

import re
from typing import Final

from logstore.cli.query import Query

__all__ = ["questions"]

ANSWERS: Final = """\
SELECT value_json->>'status' AS status, count(*) AS requests,
       count(DISTINCT key_text) AS clients,
       pg_size_pretty(sum((value_json->>'bytes')::bigint)) AS sent
  FROM {view}
 GROUP BY 1 ORDER BY requests DESC"""

VISITS: Final = """\
SELECT key_text AS client, partition, count(*) AS requests,
       1 + count(*) FILTER (WHERE pause > interval '30 minutes') AS visits
  FROM (SELECT *, timestamp - lag(timestamp) OVER visitor AS pause
          FROM {view}
        WINDOW visitor AS (PARTITION BY key ORDER BY timestamp)) AS request
 GROUP BY 1, 2 ORDER BY requests DESC LIMIT 5"""

DAMAGED: Final = """\
SELECT partition, "offset", headers->0->>'value' AS line, '…' || right(value_text, 40) AS value
  FROM {view} WHERE value_json IS NULL"""


def questions(schema: str, topic: str) -> list[Query]:
    """The questions with the name of the topic's view in them, so that they can be copied to any psql."""
    view = f"{_name(f'{schema}_topics')}.{_name(topic)}"
    return [
        Query("What did the web server answer?", ANSWERS.replace("{view}", view)),
        Query(
            "Who came most often, and on how many visits? (30 minutes of silence end one)",
            VISITS.replace("{view}", view),
        ),
        Query("Which line of the log was no complete request?", DAMAGED.replace("{view}", view)),
    ]


def _name(name: str) -> str:
    """A name as SQL has it, quoted where it must be."""
    return name if re.fullmatch("[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'
