"""Which store keeps the history, by the settings. Cassandra's driver is imported only where it is that."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from runtime import config
from runtime.config import Settings
from runtime.connection import Connection
from runtime.counters import WorkerCounters
from runtime.history import History
from runtime.history.jetstream import JetStreamHistory

if TYPE_CHECKING:
    from runtime.history.tables import Tables


class Stores:
    """The history over one NATS connection after another; the connections to Cassandra stay."""

    def __init__(
        self, settings: Settings, counters: WorkerCounters | None = None, *, patience_s: float = math.inf
    ) -> None:
        """A request that is not answered for *patience_s* raises HistoryUnreachable."""
        self._settings, self._counters, self._patience_s = settings, counters, patience_s
        self._tables: Tables | None = None
        self._watching: asyncio.Task[None] | None = None

    async def over(self, connection: Connection, store: config.History | None = None) -> History:
        """The history of *store*, by default that of the settings. Waits while Cassandra is away; raises
        HistoryDiffers or CredentialsRefused."""
        settings = self._settings
        stream = JetStreamHistory(
            connection, settings.names, settings.history_depth, settings.request_timeout_s
        )
        if (store or settings.history) is config.History.JETSTREAM:
            return stream
        from runtime.history.cassandra import CassandraHistory
        from runtime.history.tables import Tables

        if self._tables is None:
            self._tables = Tables(settings, self._counters, patience_s=self._patience_s)
        await self._tables.open()
        if self._watching is None:
            self._watching = asyncio.create_task(self._tables.watch())
        return CassandraHistory(self._tables, stream, settings.history_depth, self._counters)

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        if self._tables is not None:
            await self._tables.close()


@asynccontextmanager
async def opened(
    settings: Settings, connection: Connection, store: config.History | None = None
) -> AsyncIterator[History]:
    """The history of *store*, by default that of the settings, for a command."""
    stores = Stores(settings, patience_s=settings.cassandra_timeout_s)
    try:
        yield await stores.over(connection, store)
    finally:
        await stores.close()
