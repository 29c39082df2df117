"""Three real nats-servers as one cluster: streams and buckets have three copies and a RAFT leader each."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fleet import connected, until

from runtime.bus import Connection, connect
from runtime.config import Settings
from runtime.embedded import HOST, NatsServer
from runtime.errors import DefenderError
from runtime.resources import ensure

MEMBERS: Final = 3
ELECTED_S_MAX: Final = 30.0


class NatsCluster:
    """The servers by their names in the cluster, as JetStream tells them."""

    def __init__(self) -> None:
        clients, routes = free_ports(MEMBERS), free_ports(MEMBERS)
        urls = ", ".join(f"nats://{HOST}:{port}" for port in routes)
        self.servers: dict[str, NatsServer] = {}
        for client, route in zip(clients, routes, strict=True):
            extra = f"cluster {{ name: faults, listen: {HOST}:{route}, routes: [{urls}] }}"
            self.servers[f"defender-{client}"] = NatsServer(port=client, extra=extra)

    @property
    def url(self) -> str:
        """All of them, as NATS_SERVERS takes them."""
        return self.urls()

    def urls(self, *, without: str = "") -> str:
        """All of them but one."""
        return ",".join(server.url for name, server in self.servers.items() if name != without)

    async def prepare(self, settings: Settings) -> None:
        """Makes the fleet's streams and buckets, and waits until each has a leader."""
        async with connected(settings) as connection:
            await ensure(connection, settings)
            names = (await connection.api("STREAM.NAMES"))["streams"]
            for name in names:
                await until(
                    lambda name=name: self.leader_of(connection, name),
                    deadline_s=ELECTED_S_MAX,
                    what=f"a server leads {name}",
                )

    async def leader_of(self, connection: Connection, stream: str) -> str:
        """The name of the server that leads the stream's RAFT group; "" while none does."""
        try:
            answer = await connection.api(f"STREAM.INFO.{stream}")
        except DefenderError:
            return ""
        return str(answer["cluster"].get("leader", ""))

    async def is_led_anew(self, connection: Connection, stream: str, before: str) -> bool:
        """Whether another server than *before* leads the stream."""
        return await self.leader_of(connection, stream) not in ("", before)

    async def lead(self, connection: Connection, stream: str, server: str) -> None:
        """Lets the server lead the stream."""

        async def leads() -> bool:
            try:
                answer = await connection.api(f"STREAM.INFO.{stream}")
                if answer["cluster"].get("leader") == server:
                    return True
                wish = {"placement": {"preferred": server}}
                await connection.api(f"STREAM.LEADER.STEPDOWN.{stream}", wish)
            except DefenderError:
                return False  # it is between two leaders
            return False

        await until(leads, deadline_s=ELECTED_S_MAX, what=f"{server} leads {stream}")

    async def is_whole(self, connection: Connection, stream: str) -> bool:
        """Whether every copy of the stream is up to date."""
        try:
            cluster = (await connection.api(f"STREAM.INFO.{stream}"))["cluster"]
        except DefenderError:
            return False
        replicas = cluster.get("replicas") or []
        return len(replicas) == MEMBERS - 1 and all(r["current"] and not r.get("offline") for r in replicas)


@asynccontextmanager
async def nats_cluster() -> AsyncIterator[NatsCluster]:
    """A cluster whose JetStream answers."""
    cluster = NatsCluster()

    async def answers() -> bool:
        for server in cluster.servers.values():
            try:
                connection = await connect(Settings(nats_servers=server.url), "test", reconnect=False)
                await connection.close()
            except DefenderError:
                return False
        return True

    try:
        async with asyncio.TaskGroup() as starting:
            for server in cluster.servers.values():
                starting.create_task(server.start_async())
        await until(answers, deadline_s=ELECTED_S_MAX, what="the cluster elects its leader")
        yield cluster
    finally:
        for server in cluster.servers.values():
            server.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]
