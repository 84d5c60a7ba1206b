"""Running PostgreSQL, which refuses to run as root, when we are root.

Three ways, the first that works is taken:

1. We are not root: as ourselves.
2. A user namespace (Linux): inside it the server is an ordinary account, outside of it root.  Its files
   belong to root, no account is made or borrowed, and any directory that root owns will do as its home.
3. Where namespaces are refused (most containers): as an account that exists already, ``postgres`` or
   ``nobody``, with a data directory that this account can reach.

No account is ever created.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from logstore.errors import EmbeddedServerError

__all__ = ["Identity", "choose", "run", "start"]

_CLONE_NEWUSER: Final = 0x10000000
_PR_SET_PDEATHSIG: Final = 1
_ACCOUNTS: Final = ("postgres", "nobody", "daemon")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who PostgreSQL runs as."""

    kind: Literal["self", "namespace", "account"]
    uid: int = -1
    """``namespace``: the uid inside of it, which is root's outside.  ``account``: the account's."""
    gid: int = -1
    name: str = ""

    def enter(self) -> None:
        """Become this identity for good.  For a forked child that is about to exec."""
        if self.kind == "namespace":
            outside_uid, outside_gid = os.geteuid(), os.getegid()
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWUSER) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{self.uid} {outside_uid} 1")
            Path("/proc/self/gid_map").write_text(f"{self.gid} {outside_gid} 1")
        elif self.kind == "account":
            os.setgroups([])
            os.setgid(self.gid)
            os.setuid(self.uid)
        if os.geteuid() == 0:
            raise PermissionError("still root")

    def give(self, path: Path) -> None:
        """Make this identity the owner of ``path``."""
        if self.kind == "account":
            os.chown(path, self.uid, self.gid)


def choose(
    *, reach: Sequence[Path], accounts: Sequence[str] = _ACCOUNTS, namespaces: bool = True
) -> Identity:
    """The identity to run PostgreSQL as.

    ``reach``: directories that the identity must be able to enter; checked for namespaces, where root's
    power over other accounts' files ends.  An account that cannot reach them is answered all the same: see
    :func:`reachable`. Raises :class:`EmbeddedServerError` if there is no account to borrow.
    """
    if os.geteuid() != 0:
        return Identity("self")
    known = {entry.pw_name: entry for entry in pwd.getpwall() if entry.pw_uid != 0}
    # initdb looks its own account up, so the uid inside must be one with a name; which one does not matter.
    inside = known.get("nobody") or next(iter(known.values()), None)
    if inside is not None and namespaces and sys.platform == "linux":
        candidate = Identity("namespace", inside.pw_uid, inside.pw_gid, inside.pw_name)
        if all(reachable(candidate, path) for path in reach):
            return candidate
    for name in accounts:
        if name in known:
            entry = known[name]
            return Identity("account", entry.pw_uid, entry.pw_gid, name)
    raise EmbeddedServerError(
        "PostgreSQL refuses to run as root, this system refuses user namespaces, and it has no account "
        "such as `postgres` or `nobody` to run it as.",
        advice="Run as another user, or give the DSN of a server.",
    )


def reachable(identity: Identity, directory: Path) -> bool:
    """The identity can be entered here, and can then read and search ``directory``."""

    def look() -> None:
        if not os.access(directory, os.R_OK | os.X_OK):
            raise PermissionError

    return _in_child(identity, look)


def _in_child(identity: Identity, action: Callable[[], None]) -> bool:
    """Run ``action`` in a forked child that has become ``identity``; say whether all went well."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            identity.enter()
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _prepare(identity: Identity, parent: int, bind: bool = True) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True) if bind and sys.platform == "linux" else None

    def prepare() -> None:
        # The supervisor ignores it, and what a parent ignores its children ignore, until they have a handler
        # of their own: an order to stop, the supervisor's or the kernel's below, would be lost.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        identity.enter()
        if libc is not None:
            # After enter(): a change of identity clears it.  SIGINT is PostgreSQL's fast shutdown.
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return prepare


def run(
    identity: Identity, command: Sequence[str | Path], env: dict[str, str], *, cwd: Path, keep: int
) -> subprocess.CompletedProcess[str]:
    """Run a program that inherits descriptor ``keep`` to its end.

    Call from a process with one thread only (it runs Python between fork and exec).
    """
    return subprocess.run(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        pass_fds=(keep,),
        preexec_fn=_prepare(identity, os.getpid()),
    )


def start(
    identity: Identity,
    command: Sequence[str | Path],
    env: dict[str, str],
    *,
    cwd: Path,
    log: int,
    keep: int,
    bind: bool,
) -> subprocess.Popen[bytes]:
    """Start a program that writes to descriptor ``log`` and inherits ``keep``.

    With ``bind``, on Linux, the kernel stops it when this process dies.  Call from a process with one thread
    only.
    """
    return subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(keep,),
        start_new_session=True,
        preexec_fn=_prepare(identity, os.getpid(), bind),
    )
