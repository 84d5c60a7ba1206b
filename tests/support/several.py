"""Clients of several servers: their DSN, and what goes on in them."""

from __future__ import annotations

import asyncio
import threading

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.colours import Asyncio, Colour

__all__ = ["running", "together"]


def together(*dsns: str, **more: str) -> str:
    """One DSN for the hosts of several."""
    each = [conninfo_to_dict(dsn) for dsn in dsns]
    hosts = ",".join(str(parameters["host"]) for parameters in each)
    ports = ",".join(str(parameters.get("port", 5432)) for parameters in each)
    return make_conninfo("", **{**each[0], "host": hosts, "port": ports, **more})


def running(colour: Colour) -> list[str]:
    """The names of the threads that run, and of the tasks."""

    async def tasks() -> list[str]:
        return [task.get_name() for task in asyncio.all_tasks()]

    names = [thread.name for thread in threading.enumerate()]
    return names + colour.run(tasks) if isinstance(colour, Asyncio) else names
