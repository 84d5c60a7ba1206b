"""Dependencies between transactions, and the cycles among them that no order of commits explains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Edges", "components", "edges_of"]

Edges = dict[int, dict[int, set[str]]]
"""From transaction to transaction: why it has to come after (``ww``, ``wr``, ``rw``)."""


def edges_of(
    writers: Mapping[str, Mapping[int, int]], readers: Iterable[tuple[int, str, Sequence[int]]]
) -> Edges:
    """``writers``: which transaction wrote each offset of each partition; ``readers``: transaction,
    partition, offsets that it read.

    ww: who wrote the next record of a partition.  wr: who read what another wrote.  rw: who wrote the record
    after the last one that another read.
    """
    edges: Edges = defaultdict(lambda: defaultdict(set))
    follower: dict[tuple[str, int], int] = {}
    for partition, by_offset in writers.items():
        before: tuple[int, int] | None = None
        for offset in sorted(by_offset):
            writer = by_offset[offset]
            if before is not None:
                follower[partition, before[0]] = writer
                if before[1] != writer:
                    edges[before[1]][writer].add("ww")
            before = offset, writer
    for reader, partition, offsets in readers:
        for offset in offsets:
            writer = writers.get(partition, {}).get(offset, reader)
            if writer != reader:
                edges[writer][reader].add("wr")
        if offsets:
            after = follower.get((partition, max(offsets)), reader)
            if after != reader:
                edges[reader][after].add("rw")
    return edges


def components(edges: Edges, kinds: frozenset[str]) -> list[list[int]]:
    """The sets of more than one transaction of which each depends on each (Tarjan), by edges of ``kinds``."""
    graph = {
        source: [target for target, why in targets.items() if why & kinds]
        for source, targets in edges.items()
    }
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found: list[list[int]] = []
    for root in list(graph):
        if root in index:
            continue
        # Not by recursion: a history is deeper than Python's stack.
        work = [(root, iter(graph.get(root, ())))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(graph.get(target, ()))))
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.append(member)
                        if member == node:
                            break
                    if len(component) > 1:
                        found.append(sorted(component))
    return found
