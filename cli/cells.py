"""Values that SQL gives, as text for a table, CSV or JSON."""

from __future__ import annotations

import json
import math
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from logstore.cli.display import escape_controls

__all__ = ["csv_cell", "json_cell", "json_text", "table_cell"]


def table_cell(cell: Any) -> str | None:
    """For people: bytes as text where they are text, floats without noise; nothing that drives a terminal."""
    if cell is None:
        return None
    if isinstance(cell, bytes):
        try:
            return escape_controls(cell.decode("utf-8"))
        except UnicodeDecodeError:
            return "\\x" + cell.hex()
    if isinstance(cell, dict | list):
        return escape_controls(json.dumps(cell, ensure_ascii=False, default=json_cell))
    if isinstance(cell, datetime):
        return cell.isoformat(sep=" ")
    if isinstance(cell, float):
        return f"{cell:g}" if cell and abs(cell) < 1e-3 else f"{cell:.3f}".rstrip("0").rstrip(".")
    return escape_controls(str(cell), keep="\n")


def csv_cell(cell: Any) -> Any:
    """For programs: as JSON has it, but text and numbers bare."""
    if isinstance(cell, float) and not math.isfinite(cell):
        return _named(cell)
    if cell is None or isinstance(cell, str | int | float | Decimal):
        return cell
    if isinstance(cell, dict | list):
        return json.dumps(cell, ensure_ascii=False, default=json_cell)
    return json_cell(cell)


def json_text(row: dict[str, Any]) -> str:
    """A row as one JSON object; what JSON has no number for, NaN and infinities, as PostgreSQL names it."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, default=json_cell)
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=False, default=json_cell)


def _finite(cell: Any) -> Any:
    if isinstance(cell, dict):
        return {name: _finite(each) for name, each in cell.items()}
    if isinstance(cell, list):
        return [_finite(each) for each in cell]
    return _named(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell


def _named(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def json_cell(cell: Any) -> Any:
    r"""What JSON has no word for: bytes as PostgreSQL writes them (``\x6869``), times as ISO 8601."""
    if isinstance(cell, bytes):
        return "\\x" + cell.hex()
    if isinstance(cell, Decimal) and not cell.is_finite():
        return str(cell)
    if isinstance(cell, Decimal):
        return int(cell) if cell == cell.to_integral_value() else float(cell)
    if isinstance(cell, datetime | date):
        return cell.isoformat()
    return str(cell)
