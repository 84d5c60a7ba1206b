"""The ``logstore`` command.

One noun a file; nothing is imported before the command that needs it runs, so that ``logstore --help``
and shell completion answer at once.  Commands talk to the log through :class:`logstore.Admin`,
:class:`logstore.Producer` and :class:`logstore.Consumer`, as any program would.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its code (:mod:`logstore.cli.failures` lists them)."""
    # Ctrl-C while the command is still being imported ends it without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from logstore.cli.failures import guarded
    from logstore.cli.root import root

    sys.exit(guarded(root, sys.argv[1:] if argv is None else argv))
