"""A ``logstore`` command that has been started already.

Pages run it more than a hundred times, and most of what that takes is Python reading the same modules each
time.  Here one process reads them, once, and becomes each command by forking; what stands in PATH hands it
its arguments, its environment, its directory and its standard streams, passes signals on, and ends as it
does.  tests/cli/test_processes.py and tests/packaging run the command as it is installed.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import marshal
import os
import pkgutil
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

from tests.support.servers import PREFIX

__all__ = ["prestarted"]

_NUMBER: Final = 8
_CALLER: Final = """#!{python} -ISE
import _signal, _socket, marshal, os, sys
# Until there is somebody to pass them on to they wait.
passed_on = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP)
mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, passed_on)
connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
connection.connect({address!r})
order = marshal.dumps((sys.argv, dict(os.environb), os.getcwdb()))
streams = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
connection.sendmsg([len(order).to_bytes(8, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
while order:
    order = order[connection.send(order):]
pid = int.from_bytes(connection.recv(8), "big")
for number in passed_on:
    if _signal.getsignal(number) != _signal.SIG_IGN:
        _signal.signal(number, lambda number, frame: os.kill(pid, number))
_signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
code = os.waitstatus_to_exitcode(int.from_bytes(connection.recv(8), "big"))
if code < 0:
    _signal.signal(-code, _signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@contextlib.contextmanager
def prestarted() -> Iterator[Path]:
    """A directory for the front of PATH."""
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}command-"))
    address = str(directory / "socket")
    # It ends when its standard input does.
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.prestarted", address],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        caller = directory / "logstore"
        caller.write_text(_CALLER.format(python=sys.executable, address=address))
        caller.chmod(0o755)
        yield directory
    finally:
        process.communicate()
        shutil.rmtree(directory, ignore_errors=True)


def _serve(address: str) -> None:
    callers: dict[int, socket.socket] = {}
    ended, waker = os.pipe()
    os.set_blocking(ended, False)
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([0, listener.fileno(), ended], [], [])
            if 0 in ready:
                return
            if ended in ready:
                os.read(ended, 4096)
                _reap(callers)
            if listener.fileno() in ready:
                caller, _ = listener.accept()
                size, streams, _, _ = socket.recv_fds(caller, _NUMBER, 3)
                if len(streams) < 3:
                    # It has been killed already.
                    caller.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _become(caller, int.from_bytes(size, "big"), streams)
                callers[pid] = caller
                with contextlib.suppress(BrokenPipeError):
                    caller.sendall(pid.to_bytes(_NUMBER, "big"))
                for stream in streams:
                    os.close(stream)


def _reap(callers: dict[int, socket.socket]) -> None:
    while callers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with callers.pop(pid) as caller, contextlib.suppress(BrokenPipeError):
            caller.sendall(status.to_bytes(_NUMBER, "big"))


def _become(caller: socket.socket, size: int, streams: list[int]) -> NoReturn:
    """The command, in a process that has just been forked."""
    with caller, caller.makefile("rb") as file:
        argv, environment, directory = marshal.loads(file.read(size))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environb.clear()
    os.environb.update(environment)
    os.chdir(directory)
    sys.argv = argv
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    from logstore.cli import main

    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, int | None):
            _leave(end.code or 0)
        raise


def _leave(code: int) -> NoReturn:
    """What the interpreter does at its end, but for taking its modules apart: most of a command's time."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _read_everything() -> None:
    """The modules that commands import when they run."""
    for package in ("logstore.cli", "logstore._sync", "logstore.embedded", "logstore.workers"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _read_everything()
    # What is there now is not looked through, and so not copied, in each command.
    gc.freeze()
    _serve(sys.argv[1])
