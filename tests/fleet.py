"""What tests of a fleet share: waiting by polling, settings with names of their own, connections."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from runtime.bus import Connection, connect
from runtime.config import Settings
from runtime.embedded import NatsServer


async def until(
    condition: Callable[[], Any] | Callable[[], Awaitable[Any]], *, deadline_s: float = 10.0, what: str = ""
) -> Any:
    """Polls *condition* (a plain or a coroutine function) until it is true; returns its value."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what or condition}"
        await asyncio.sleep(0.005)


_numbers = iter(range(1, 1_000_000))


def settings_for(server: NatsServer | str, **changes: Any) -> Settings:
    """Settings of a fleet of its own on *server* (or its URLs): subjects, streams and buckets that no other
    test has."""
    own = f"t{next(_numbers)}"
    return msgspec.structs.replace(
        Settings(
            nats_servers=server if isinstance(server, str) else server.url,
            subject_root=own,
            stream_samples=f"{own}-SAMPLES",
            stream_verdicts=f"{own}-VERDICTS",
            stream_alarms=f"{own}-ALARMS",
            stream_rejected=f"{own}-REJECTED",
            nats_kv_stable_ids=f"{own}-stable-ids",
            nats_kv_heartbeats=f"{own}-heartbeats",
            nats_kv_assignments=f"{own}-assignments",
            nats_kv_leader=f"{own}-leader",
            nats_kv_chart_specs=f"{own}-chart-specs",
        ),
        **changes,
    )


@asynccontextmanager
async def connected(settings: Settings, **options: Any) -> AsyncIterator[Connection]:
    """A connection for a block of a test, closed at its end."""
    connection = await connect(settings, "test", **options)
    try:
        yield connection
    finally:
        await connection.close()
