"""What tests on Cassandra share: a server of the run, or the cluster that CASSANDRA_CONTACT_POINTS names, and
settings with a keyspace of their own on it. (Not named after the driver's package, which it would hide.)
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from cassandra_server import CannotStart, CassandraServer

from runtime.config import History, Settings, load
from runtime.history import cluster, schema

_RUN = secrets.token_hex(3)
_numbers = itertools.count(1)


def own_keyspace() -> str:
    """A name that no other test has, in no other run on the same cluster."""
    return f"t{_RUN}_{next(_numbers)}"


def on_cassandra(settings: Settings, server: CassandraServer | str, **changes: Any) -> Settings:
    """These settings with the history in a keyspace of their own on *server* (or its contact points), which
    nothing has made yet."""
    points = server if isinstance(server, str) else server.contact_point
    given = _GIVEN if isinstance(server, str) else {}
    return msgspec.structs.replace(
        settings,
        **{
            **given,
            "history": History.CASSANDRA,
            "cassandra_contact_points": points,
            "cassandra_keyspace": own_keyspace(),
            **changes,
        },
    )


def with_cassandra(settings: Settings, server: CassandraServer | str, **changes: Any) -> Settings:
    """`on_cassandra` with the keyspace and the tables made. Blocks, for 0.5 s or so."""
    changed = on_cassandra(settings, server, **changes)
    opened, session = cluster.open_cluster(changed, keyspace=False)
    try:
        schema.create(session, changed)
    finally:
        opened.shutdown()
    return changed


def drop_keyspaces(points: str) -> None:
    """Removes what this run made on a cluster that outlives it."""
    settings = on_cassandra(Settings(), points)
    opened, session = cluster.open_cluster(settings, keyspace=False)
    try:
        for (name,) in session.execute("SELECT keyspace_name FROM system_schema.keyspaces"):
            if name.startswith(f"t{_RUN}_"):
                session.execute(f"DROP KEYSPACE {name}", timeout=schema.DDL_S_MAX)
    finally:
        opened.shutdown()


def _cluster_settings() -> dict[str, Any]:
    """How the environment says to reach the cluster that exists: login, TLS, datacenter."""
    there = {name: value for name, value in os.environ.items() if name.startswith("CASSANDRA_")}
    loaded = load(there)
    return {name.lower(): getattr(loaded, name.lower()) for name in there if hasattr(loaded, name.lower())}


_GIVEN = _cluster_settings()
"""As the run began: tests change the environment."""


@contextmanager
def running(**options: Any) -> Iterator[CassandraServer]:
    """A server for a block; skips the test where none can be, fails it where DEFENDER_CASSANDRA=required."""
    server = CassandraServer(**options)
    try:
        try:
            server.start()
        except CannotStart as reason:
            unavailable(str(reason))
        yield server
    finally:
        server.close()


def unavailable(reason: str) -> None:
    if os.environ.get("DEFENDER_CASSANDRA") == "required":
        pytest.fail(f"DEFENDER_CASSANDRA=required, and there is no Cassandra: {reason}")
    pytest.skip(f"no Cassandra: {reason}")
