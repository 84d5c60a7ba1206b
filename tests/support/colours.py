"""Both colours of a client under one, blocking, face: one suite of tests describes both.

The asyncio client lives on an event loop in a thread of its own, which runs all the time as in a program;
every call is made there, and what it returns is awaited there.  The threaded client is used as it is.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType, TracebackType
from typing import Any, Self

__all__ = ["Asyncio", "Colour", "Threads"]


class Colour:
    """Makes clients; those that a test leaves open are closed with it."""

    name: str

    def __init__(self) -> None:
        self._open = ExitStack()

    def consumer(self, *topics: str, **options: Any) -> Any:
        return self._client("consumer", "Consumer", *topics, **options)

    def admin(self, *arguments: Any, **options: Any) -> Any:
        return self._client("admin", "Admin", *arguments, **options)

    def producer(self, *arguments: Any, **options: Any) -> Any:
        return self._client("producer", "Producer", *arguments, **options)

    def share_consumer(self, *topics: str, **options: Any) -> Any:
        return self._client("share_consumer", "ShareConsumer", *topics, **options)

    def connection(self, dsn: str, **options: Any) -> Any:
        """A driver's connection."""
        raise NotImplementedError

    def _client(self, module: str, kind: str, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self._open.close()


class Threads(Colour):
    name = "threads"

    def connection(self, dsn: str, **options: Any) -> Any:
        connection = _module("_sync", "driver").Connection.open(dsn, **options)
        self._open.callback(connection.close)
        return connection

    def _client(self, module: str, kind: str, *arguments: Any, **options: Any) -> Any:
        client = getattr(_module("_sync", module), kind)(*arguments, **options)
        self._open.callback(client.close)
        return client


class Asyncio(Colour):
    name = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event loop", daemon=True)
        self._thread.start()

    def connection(self, dsn: str, **options: Any) -> Any:
        made = self.run(lambda: _module("_async", "driver").Connection.open(dsn, **options))
        connection = Face(made, self.run)
        self._open.callback(connection.close)
        return connection

    def _client(self, module: str, kind: str, *arguments: Any, **options: Any) -> Any:
        make = getattr(_module("_async", module), "Async" + kind)
        client = Face(self.run(lambda: make(*arguments, **options)), self.run)
        self._open.callback(client.close)
        client.start()
        return client

    def run(self, call: Callable[[], Any]) -> Any:
        """What ``call`` returns, called, and awaited if need be, on the loop."""

        async def run() -> Any:
            result = call()
            return await result if inspect.iscoroutine(result) else result

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        super().close()
        self.run(self._finish)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self) -> None:
        await self._loop.shutdown_asyncgens()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"these tasks outlive their clients: {left}"


class Face:
    """An asyncio client as the threaded one looks."""

    def __init__(self, client: Any, run: Callable[[Callable[[], Any]], Any]) -> None:
        self._client = client
        self._run = run

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found
        return lambda *arguments, **options: self._faced(self._run(lambda: found(*arguments, **options)))

    def _faced(self, result: Any) -> Any:
        # A future, or something for ``async with``, lives on the loop as its client does.
        alive = hasattr(result, "__await__") or hasattr(result, "__aenter__")
        return Face(result, self._run) if alive else result

    def __iter__(self) -> Iterator[Any]:
        iterator = self._run(self._client.__aiter__)
        while True:
            try:
                item = self._run(lambda: _next(iterator))
            except StopAsyncIteration:
                return
            yield item

    def __next__(self) -> Any:
        try:
            return self._run(lambda: _next(self._client))
        except StopAsyncIteration:
            raise StopIteration from None

    def __len__(self) -> int:
        return len(self._client)

    def __enter__(self) -> Self:
        self._run(self._client.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return bool(self._run(lambda: self._client.__aexit__(kind, error, trace)))


async def _next(iterator: Any) -> Any:
    return await iterator.__anext__()


def _module(colour: str, name: str) -> ModuleType:
    return __import__(f"logstore.{colour}.{name}", fromlist=["*"])
