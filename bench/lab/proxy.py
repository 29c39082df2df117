"""A TCP proxy between a pod and its nats-server that can stop forwarding: a network that swallows packets.

    open ──cut──► cut ──mend──► open

While it is cut, connections stay open and new ones are accepted, but nothing goes through in either
direction; nobody gets a reset. What was sent meanwhile is delivered when it is mended, as TCP would do.

    async with proxied(server.port) as proxy:
        settings = msgspec.structs.replace(settings, nats_servers=proxy.url)   # of one pod, or of a group
        proxy.cut()

All pods behind one proxy are cut off together. It works in the lab's own thread, so where no pod is to be cut
off there is none: PROXY_COST
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

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)
        await self._open.wait()
        try:
            upstream, downstream = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(self._pump(reader, downstream), self._pump(upstream, writer))
        finally:
            for one in (writer, downstream):
                one.close()

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
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)


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
