"""Every test here runs once with the threaded clients and once with the asyncio ones."""

from tests.support.fixtures import appender, colour

__all__ = ["appender", "colour"]
