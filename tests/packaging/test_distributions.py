"""sdist -> wheel -> an empty virtual environment: everything is in it, and it does the whole job.

The environment holds the wheel and what the wheel says that it depends on, and what that depends on, as they
are in the environment that runs the tests.  With ``--all``, pip gets everything from the index instead, in
isolation, as it does for a user.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.programs import REPOSITORY
from tests.support.servers import PREFIX

pytestmark = [pytest.mark.packaging, pytest.mark.long, pytest.mark.timeout(400)]

LINKED = ("cli", "workers", "schema", "migrations")


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program; its output, or a failed test that shows it."""
    result = subprocess.run(
        command,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(env or {})},
        cwd=cwd or "/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} exited with {result.returncode}:\n{result.stdout}")
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository as a clone would have it."""
    copy = tmp_path_factory.mktemp("source") / "logstore"
    ignored = shutil.ignore_patterns(
        ".venv", ".git", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
    )
    shutil.copytree(REPOSITORY, copy, symlinks=True, ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def distributions(source: Path, long_version: bool) -> tuple[Path, Path]:
    """The sdist, and the wheel made from the sdist."""
    isolation = [] if long_version else ["--no-isolation"]
    run(sys.executable, "-m", "build", *isolation, "--outdir", source / "dist", source)
    (sdist,) = (source / "dist").glob("*.tar.gz")
    (wheel,) = (source / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def python(
    tmp_path_factory: pytest.TempPathFactory, distributions: tuple[Path, Path], long_version: bool
) -> Path:
    """A Python in a virtual environment that holds the wheel and what it depends on."""
    place = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(place, with_pip=long_version)
    python = place / "bin" / "python"
    if long_version:
        run(python, "-m", "pip", "install", "--quiet", distributions[1])
        return python
    pip = [sys.executable, "-m", "pip", f"--python={python}"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", distributions[1])
    (packages,) = place.glob("lib/python*/site-packages")
    (metadata,) = packages.glob("logstore_pg-*.dist-info")
    needed = [Requirement(text) for text in PathDistribution(metadata).requires or ()]
    link(packages, needed, {""}, set())
    return python


def link(packages: Path, needed: Iterable[Requirement], extras: set[str], known: set[str]) -> None:
    """Put there, as links, the distributions that are needed, and those that they need."""
    for each in needed:
        if each.marker is not None and not any(each.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        wanted = f"{canonicalize_name(each.name)}{sorted(each.extras)}"
        if wanted in known:
            continue
        known.add(wanted)
        found = distribution(each.name)
        assert each.specifier.contains(found.version, prereleases=True), f"{found.version} is not {each}"
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(found.locate_file(top))))
        link(packages, map(Requirement, found.requires or ()), {"", *each.extras}, known)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty HOME, and nothing in the environment that leads to this repository or to a server."""
    import tempfile

    for name in ("PYTHONPATH", "LOGSTORE_DSN", "LOGSTORE_HOME", "LOGSTORE_TEST_DSN", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = Path(tempfile.mkdtemp(prefix=PREFIX))
    monkeypatch.setenv("HOME", str(home))
    yield home
    shutil.rmtree(home, ignore_errors=True)


def expected() -> set[str]:
    """Every file of the package, where an installed package has it."""
    roots = {REPOSITORY / "logstore": "logstore"} | {REPOSITORY / name: f"logstore/{name}" for name in LINKED}
    return {
        f"{prefix}/{file.relative_to(root)}"
        for root, prefix in roots.items()
        for file in root.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_wheel_holds_every_file_of_the_package(distributions: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(distributions[1]).namelist())
    assert expected() - names == set()
    assert {name for name in names if not name.startswith(("logstore/", "logstore_pg-"))} == set()


def test_the_sdist_holds_no_links(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        assert [member.name for member in archive if member.issym() or member.islnk()] == []
        names = {member.name.partition("/")[2] for member in archive}
    assert expected() - names == set()
    assert {"LICENSE", "NOTICE", "README.md", "pyproject.toml"} <= names


def test_every_module_can_be_imported(python: Path, clean: Path) -> None:
    run(
        python,
        "-W",
        "error",
        "-c",
        "import importlib, pkgutil, logstore\n"
        "for module in pkgutil.walk_packages(logstore.__path__, 'logstore.'):\n"
        "    if module.name.endswith('__main__') or module.name == 'logstore.migrations.env':\n"
        "        continue\n"
        "    importlib.import_module(module.name)\n",
    )


def test_the_sql_is_there(python: Path, clean: Path) -> None:
    said = run(
        python,
        "-c",
        "from importlib import resources\n"
        "print((resources.files('logstore.schema') / 'append.sql').read_text())\n",
    )
    assert "create or replace function append" in said.lower()


def test_the_command_says_its_version(python: Path, clean: Path) -> None:
    from importlib.metadata import version

    assert version("logstore-pg") in run(python.with_name("logstore"), "--version")


def test_its_types_are_seen(python: Path, clean: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from logstore import Admin, Consumer, Producer\n"
        "reveal_type(Producer().flush)\n"
        "Producer(linger_ms='soon')\n"
    )
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--cache-dir",
            str(tmp_path / "cache"),
            f"--python-executable={python}",
            program,
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert 'Revealed type is "def' in result.stdout
    assert "Found 1 error" in result.stdout, result.stdout
    assert '"linger_ms"' in result.stdout


def test_it_does_the_whole_job(python: Path, clean: Path) -> None:
    """`pip install`, then `logstore demo`, on the embedded server, in an empty HOME."""
    logstore = python.with_name("logstore")
    try:
        found = json.loads(run(logstore, "demo", "--output", "json", cwd=clean))
    finally:
        run(logstore, "down")
    assert (found["requests"], found["passed"]) == (10_000, True)
