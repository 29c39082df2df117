"""A TCP proxy between a pod and its nats-server that can stop forwarding: a network that swallows packets.

    open ──cut──► cut ──mend──► open

While it is cut, connections stay open and new ones are accepted, but nothing goes through in either
direction; nobody gets a reset. What was sent meanwhile is delivered when it is mended, as TCP would do.

    async with proxied(server.port) as proxy:
        settings = msgspec.structs.replace(settings, nats_servers=proxy.url)   # of one pod, or of a group
        proxy.cut()

All pods behind one proxy are cut off together. It works in the lab's own thread and takes 14 µs of it for a
small chunk and 47 µs for one of 64 KB, so only pods that may be cut off should be behind one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

HOST: Final = "127.0.0.1"
CHUNK_BYTES: Final = 65_536


class Proxy:
    """Forwards from *port* to *target_port*, both on the loopback. *forwarded* counts bytes."""

    def __init__(self, target_port: int) -> None:
        self.port = self.forwarded = 0
        self._target_port = target_port
        self._open = asyncio.Event()
        self._open.set()
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """What NATS_SERVERS of the pods behind it is."""
        return f"nats://{HOST}:{self.port}"

    @property
    def is_cut(self) -> bool:
        return not self._open.is_set()

    def cut(self) -> None:
        """Nothing goes through any more."""
        self._open.clear()

    def mend(self) -> None:
        """Everything goes through again, first of all what waits."""
        self._open.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # not a coroutine itself: of one that is cancelled CPython 3.11 prints a stack
        task = asyncio.create_task(self._forward(reader, writer))
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._open.wait()
            upstream, downstream = await asyncio.open_connection(HOST, self._target_port)
            try:
                await asyncio.gather(self._pump(reader, downstream), self._pump(upstream, writer))
            finally:
                downstream.close()
        except OSError:
            return  # nobody listens there: the client is told so by the end of its connection
        finally:
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await self._open.wait()
                self.forwarded += len(chunk)
                writer.write(chunk)
                await writer.drain()
        await self._open.wait()  # the end of a connection is a packet, too
        writer.close()

    async def close(self) -> None:
        """Ends all connections, whether it is cut or not."""
        pumps = list(self._pumps)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


@asynccontextmanager
async def proxied(target_port: int) -> AsyncIterator[Proxy]:
    """An open proxy on a free port."""
    proxy = Proxy(target_port)
    server = await asyncio.start_server(proxy._accept, HOST, 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
