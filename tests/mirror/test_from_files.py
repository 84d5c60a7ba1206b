"""What the source has in files only is copied too, and so is what was erased from them."""

from __future__ import annotations

from pathlib import Path

from tests.support.mirrored import Both
from tests.support.tiered import TieredLog


def test_records_in_files(both: Both, tmp_path: Path) -> None:
    with TieredLog(both.link.source, f"file://{tmp_path}", partitions=2) as log:
        log.fill(20)
        log.settle()
        assert log.local_start() > 20
        log.fill(3)
        log.rows("SELECT delete_records('t', 1, 12)")
        assert both.cycle().refused == {}
        found = both.target.execute(
            'SELECT "partition", "offset", (extract(epoch FROM "timestamp") * 1000)::int8, key, value'
            " FROM records ORDER BY 1, 2"
        ).fetchall()
        there = [record for record in log.everything() if record[0] == 0 or record[1] >= 12]
        assert found == [record[:5] for record in there]
        (headers,) = both.target.execute(
            "SELECT count(*) FROM records WHERE jsonb_array_length(headers) > 0"
        ).fetchone() or (None,)
        assert headers == sum(bool(record[5]) for record in there)
    assert both.differences("ends") == []
    assert both.findings() == []
