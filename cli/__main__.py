"""``python -m logstore.cli``: the same as ``logstore``."""

from logstore.cli import main

main()
