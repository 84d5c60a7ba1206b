"""Clients that meet each other: threads, tasks and processes."""

from tests.support.fixtures import appender, colour

__all__ = ["appender", "colour"]
