"""The way to Cassandra, and its tables, on a real server."""

from __future__ import annotations

import msgspec
import pytest
from cassandra.cluster import Session
from on_cassandra import CassandraServer, on_cassandra, with_cassandra

from runtime.config import Settings
from runtime.errors import HistoryDiffers
from runtime.history import cluster, schema

Server = CassandraServer | str


def test_the_schema_is_made_once_and_found_whole_ever_after(cassandra_server: Server) -> None:
    settings = on_cassandra(Settings(), cassandra_server)
    opened, session = cluster.open_cluster(settings, keyspace=False)
    try:
        with pytest.raises(HistoryDiffers, match="defender init"):
            schema.check(session, settings)
        made = schema.create(session, settings)
        assert len(made) == 4, made
        assert schema.create(session, settings) == []
        schema.check(session, settings)
    finally:
        opened.shutdown()
