"""A PostgreSQL of our own, for whoever gives no DSN.

Started by the first who needs it, shared by every process of the user, stopped when nobody has used it for a
while. Its data live in the user's data directory (``LOGSTORE_HOME`` overrides); it listens on a Unix socket
that only the user can reach, never on a network.
"""

from logstore.embedded.home import ServerStatus
from logstore.embedded.server import EmbeddedServer, Handle, down, run_in_foreground, status

__all__ = ["EmbeddedServer", "Handle", "ServerStatus", "down", "run_in_foreground", "status"]
