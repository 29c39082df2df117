"""A pull that nobody listens for yet: in a cluster, a new consumer's leader may not be known everywhere."""

from __future__ import annotations

import asyncio

import pytest
from fleet import connected, settings_for

from runtime.bus import within
from runtime.connection import Connection
from runtime.embedded import NatsServer
from runtime.frames import frame_pub
from runtime.history.jetstream import _Reader
from runtime.jetstream import NoAnswer
from runtime.resources import ensure
from tests.contract.test_history import verdict

ROWS = 40
LATE = "late.leader"
"""What the reader takes for its consumer's subject; `listen` sends on what comes there."""


async def consumer_of(connection: Connection, server: NatsServer) -> str:
    settings = settings_for(server, partitions=4)
    await ensure(connection, settings)
    names = settings.names
    rows = [verdict(names, "C1", seq) for seq in range(1, ROWS + 1)]
    await within(connection.start_all(rows, repeats=True), 20.0, "publishing")
    stream = names.verdicts_stream(names.partition_of("C1"))
    created = await connection.api(
        f"CONSUMER.CREATE.{stream}",
        {"stream_name": stream, "config": {"ack_policy": "none", "deliver_policy": "all"}},
        timeout_s=5.0,
    )
    return f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{created['name']}"


async def listen(connection: Connection, pulls: str) -> None:
    def send_on(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        connection.write(frame_pub(pulls.encode(), payload, reply))

    await connection.tap(LATE, send_on)


@pytest.mark.parametrize("gentle", [False, True])
async def test_a_pull_that_nobody_heard_is_sent_again_and_every_row_comes(
    nats_server: NatsServer, gentle: bool
) -> None:
    async with connected(settings_for(nats_server)) as connection:
        pulls = await consumer_of(connection, nats_server)
        reader = _Reader(connection, LATE, ROWS, gentle=gentle)
        await reader.start()
        reading = asyncio.create_task(reader.rows(5.0))
        while reader._is_unheard is False:
            await asyncio.sleep(0.001)
        await listen(connection, pulls)
        rows = await reading
        while len(rows) < ROWS:
            rows += await reader.rows(5.0)
        await reader.stop()
        assert [seq for _, seq in rows] == list(range(1, ROWS + 1))


async def test_a_pull_that_nobody_ever_hears_ends_by_its_time(nats_server: NatsServer) -> None:
    async with connected(settings_for(nats_server)) as connection:
        reader = _Reader(connection, LATE, ROWS, gentle=False)
        await reader.start()
        with pytest.raises(NoAnswer, match="sent nothing"):
            await reader.rows(0.2)
        await reader.stop()
