"""The threaded colour is what the tool makes of the asyncio one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "unasync.py"


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unasync_tool", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_files_are_up_to_date(tool: ModuleType) -> None:
    assert tool.stale(tool.generate()) == [], f"run: {Path(sys.executable).name} tools/unasync.py"


def test_words_change(tool: ModuleType) -> None:
    text = "async def send(self) -> None:\n    async with self.x:\n        await self.y()\n"
    assert tool.translate(text, set()) == "def send(self) -> None:\n    with self.x:\n        self.y()\n"


def test_unused_rule_is_an_error(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "RULES", [*tool.RULES, ("no such word", "nothing")])
    with pytest.raises(ValueError, match="no such word"):
        tool.generate()


def test_check_names_what_differs(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "_async", tmp_path / "_sync"
    source.mkdir()
    target.mkdir()
    (source / "one.py").write_text("async def one() -> None:\n    pass\n")
    (target / "one.py").write_text("def one() -> None:\n    return None\n")
    (target / "left_over.py").write_text("")
    monkeypatch.setattr(tool, "SOURCE", source)
    monkeypatch.setattr(tool, "TARGET", target)
    monkeypatch.setattr(tool, "RULES", tool.RULES[:1])
    assert tool.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert "-    return None" in said
    assert "+    pass" in said
    assert "left_over.py: nothing generates it" in said
    (target / "left_over.py").unlink()
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
