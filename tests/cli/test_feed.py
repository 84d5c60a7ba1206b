"""What becomes of lines that are on their way."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import pytest

from logstore import BatchMetadata, Producer
from logstore.cli.failures import InputError
from logstore.cli.feed import Feed, chunks
from logstore.cli.lines import Line, line_parser
from logstore.errors import DeliveryTimeoutError, LogstoreError, RecordTooLargeError


class Future:
    def __init__(self, runs: Sequence[BatchMetadata | LogstoreError], *, done: bool = True) -> None:
        self._runs = runs
        self._done = done

    def done(self) -> bool:
        return self._done

    def runs(self) -> Sequence[BatchMetadata | LogstoreError]:
        return self._runs


class Stub:
    """A producer that answers as it is told."""

    def __init__(self, *answers: Future | LogstoreError) -> None:
        self._answers = list(answers)
        self.sent: list[list[bytes]] = []

    def send_many(self, topic: str, values: Sequence[bytes], **_: Any) -> Future:
        self.sent.append(list(values))
        answer = self._answers.pop(0)
        if isinstance(answer, LogstoreError):
            raise answer
        return answer

    def flush(self, timeout: float | None = None) -> None:
        pass


def feed(stub: Stub) -> Feed:
    return Feed(cast(Producer, stub), "orders", line_parser(None, None), Line(None))


def run(partition: int, base: int, count: int) -> BatchMetadata:
    return BatchMetadata("orders", partition, base, count, -1)


def test_lines_come_in_the_pieces_in_which_they_are_read() -> None:
    class Slow(io.BytesIO):
        pieces: ClassVar = [b"on", b"e\ntwo\nthr", b"ee", b"\n\nlast"]

        def read1(self, size: int | None = -1, /) -> bytes:
            return self.pieces.pop(0) if self.pieces else b""

    seen: list[int] = []
    assert list(chunks(Slow(), seen.append)) == [[b"one", b"two"], [b"three", b""], [b"last"]]
    assert seen == [2, 11, 13, 19]
    assert list(chunks(io.BytesIO(b""), seen.append)) == []


def test_acknowledged_records_are_counted_by_partition() -> None:
    stub = Stub(Future([run(0, 10, 2), run(1, 5, 1)]), Future([run(0, 12, 1)]))
    fed = feed(stub)
    fed.send([b"a", b"b", b"c"])
    fed.send([b"d"])
    fed.finish()
    document = fed.document(complete=True)
    assert (document["records"], document["bytes"], document["not_acknowledged"]) == (4, 4, 0)
    assert document["partitions"] == [
        {"partition": 0, "records": 3, "first_offset": 10, "last_offset": 12},
        {"partition": 1, "records": 1, "first_offset": 5, "last_offset": 5},
    ]


def test_lines_that_were_not_delivered_are_named_and_counted() -> None:
    stub = Stub(Future([run(0, 0, 1)]), Future([run(0, 1, 1), DeliveryTimeoutError("too late")]))
    fed = feed(stub)
    fed.send([b"a"])
    with pytest.raises(DeliveryTimeoutError, match="Lines 2 to 4: too late"):
        fed.send([b"b", b"c", b"d"])
    fed.give_up(0)
    assert (fed.acknowledged, fed.unknown) == (2, 2)


def test_what_is_still_on_its_way_is_not_acknowledged() -> None:
    fed = feed(Stub(Future([run(0, 0, 2)]), Future([], done=False)))
    fed.send([b"a", b"b"])
    fed.send([b"c", b"d", b"e"])
    fed.give_up(0)
    assert (fed.acknowledged, fed.unknown) == (2, 3)


def test_the_one_line_that_is_refused_is_named() -> None:
    large = RecordTooLargeError("too large", advice="Send less.")
    stub = Stub(large, Future([run(0, 0, 1)]), large)
    fed = feed(stub)
    with pytest.raises(RecordTooLargeError, match=r"Line 2: too large\. Send less\."):
        fed.send([b"a", b"b", b"c"])
    assert stub.sent == [[b"a", b"b", b"c"], [b"a"], [b"b"]]
    fed.give_up(0)
    assert (fed.acknowledged, fed.unknown) == (1, 0)


def test_what_stands_before_a_wrong_line_is_sent() -> None:
    stub = Stub(Future([run(0, 0, 1)]))
    fed = Feed(cast(Producer, stub), "orders", line_parser(b":", None), Line(None))
    with pytest.raises(InputError, match="Line 2"):
        fed.send([b"k:a", b"wrong", b"k:c"])
    assert stub.sent == [[b"a"]]
