"""Records that are to be erased, in row groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from logstore.tier.extra import needed

__all__ = ["erased", "holds"]

Keys = Mapping[bytes, tuple[int, int]]
"""For each key an id, and the offset before which its records go."""


def holds(table: Any, keys: Keys) -> bool:
    """Some record of the row group is to go."""
    return any(_where(table, key, end).true_count for key, (_, end) in keys.items())


def erased(table: Any, keys: Keys) -> tuple[Any, int, dict[int, int]]:
    """What is left of the row group, its largest time stamp (ms), and how many records went by each id."""
    pa, pc = needed("pyarrow"), needed("pyarrow.compute")
    counts: dict[int, int] = {}
    keep = None
    for key, (erasure_id, end) in keys.items():
        gone = _where(table, key, end)
        counts[erasure_id] = counts.get(erasure_id, 0) + gone.true_count
        keep = pc.invert(gone) if keep is None else pc.and_(keep, pc.invert(gone))
    left = table if keep is None else table.filter(keep)
    newest = pc.max(left["timestamp"].cast(pa.int64())).as_py() if left.num_rows else 0
    return left, newest, counts


def _where(table: Any, key: bytes, end: int) -> Any:
    pa, pc = needed("pyarrow"), needed("pyarrow.compute")
    same = pc.fill_null(pc.equal(table["key"], pa.scalar(key, pa.binary())), False)
    found = pc.and_(same, pc.less(table["offset"], end))
    return found.combine_chunks() if found.num_chunks != 1 else found.chunk(0)
