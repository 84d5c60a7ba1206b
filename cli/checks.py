"""What came back against what was sent: the demo's checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from logstore.cli.access_log import Request
from logstore.cli.output import human_count
from logstore.records import ConsumerRecord, TopicPartition

__all__ = ["LINE", "Check", "compare", "line_of"]

LINE: Final = "line"
"""The header that says which line of the log a record was, from 1."""


class Check(NamedTuple):
    name: str
    """Stable; for programs."""
    title: str
    passed: bool
    detail: str
    """What was seen: the evidence when it passed, the first counter-examples when not."""


def line_of(record: ConsumerRecord) -> int | None:
    """The line a record was made from; None for a record that the demo did not make."""
    for name, value in record.headers:
        if name == LINE and value is not None and value.isdigit():
            return int(value)
    return None


def compare(
    sent: Sequence[Request], received: Mapping[TopicPartition, Sequence[ConsumerRecord]]
) -> list[Check]:
    """Every check on the records of each partition, in the order they were read."""
    everything = [record for records in received.values() for record in records]
    lines = [line_of(record) for record in everything]
    return [
        _missing(sent, lines),
        _repeated(lines),
        _altered(sent, everything, lines),
        _key_order(sent, received),
        _contiguous(received),
    ]


def _missing(sent: Sequence[Request], lines: Sequence[int | None]) -> Check:
    missing = sorted(set(range(1, len(sent) + 1)) - {line for line in lines if line is not None})
    detail = f"{human_count(len(sent) - len(missing))} of {human_count(len(sent))} requests came back"
    return Check("missing", "nothing is missing", not missing, _with_examples(detail, "line", missing))


def _repeated(lines: Sequence[int | None]) -> Check:
    seen: set[int | None] = set()
    repeated = [line for line in lines if line in seen or seen.add(line)]  # type: ignore[func-returns-value]
    detail = f"{human_count(len(lines))} records, {human_count(len(seen))} different requests"
    return Check("repeated", "nothing is repeated", not repeated, _with_examples(detail, "line", repeated))


def _altered(
    sent: Sequence[Request], everything: Sequence[ConsumerRecord], lines: Sequence[int | None]
) -> Check:
    altered = []
    for record, line in zip(everything, lines, strict=True):
        if line is None or not 1 <= line <= len(sent):
            altered.append(line)
            continue
        request = sent[line - 1]
        if (record.key, record.value, record.timestamp) != (
            request.client,
            request.value,
            request.timestamp_ms,
        ):
            altered.append(line)
    size = sum(len(record.key or b"") + len(record.value or b"") for record in everything)
    detail = f"{human_count(size)} bytes of keys and values, all time stamps"
    return Check("altered", "nothing is altered", not altered, _with_examples(detail, "line", altered))


def _key_order(sent: Sequence[Request], received: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> Check:
    home: dict[bytes, TopicPartition] = {}
    last: dict[bytes, int] = {}
    broken: list[object] = []
    for tp, records in received.items():
        for record in records:
            line = line_of(record) or 0
            if home.setdefault(record.key, tp) != tp or last.get(record.key, 0) >= line:
                broken.append(f"{record.key!r} at line {line}")
            last[record.key] = line
    detail = f"{human_count(len(home))} clients, each in one partition"
    return Check("order", "every client is in order", not broken, _with_examples(detail, "", broken))


def _contiguous(received: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> Check:
    broken: list[object] = []
    for tp, records in received.items():
        broken += [
            f"{tp.partition}:{record.offset} where {expected} was due"
            for expected, record in enumerate(records)
            if record.offset != expected
        ]
    detail = ", ".join(f"0-{len(records) - 1}" for _, records in sorted(received.items()) if records)
    return Check("offsets", "offsets have no gap", not broken, _with_examples(detail, "", broken))


def _with_examples(detail: str, what: str, examples: Sequence[object]) -> str:
    if not examples:
        return detail
    shown = ", ".join(f"{what} {example}".strip() for example in examples[:3])
    more = f" and {human_count(len(examples) - 3)} more" if len(examples) > 3 else ""
    return f"{detail}; not so for {shown}{more}"
