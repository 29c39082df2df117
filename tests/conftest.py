"""Shared by all tests: coroutine tests run on uvloop; a real nats-server a module; one Cassandra for the
whole run; settings that fit."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the program has it; before NumPy is imported

import pytest
import uvloop
from cassandra_server import CassandraServer
from fleet import settings_for

from runtime.config import Settings
from runtime.embedded import NatsServer

TEST_S_MAX = 60.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a coroutine test on a uvloop of its own, with a limit to its time."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def limited() -> None:
        marker = pyfuncitem.get_closest_marker("limit_s")
        async with asyncio.timeout(marker.args[0] if marker is not None else TEST_S_MAX):
            await test(**arguments)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())
    return True


@pytest.fixture(scope="module")
def nats_server() -> Iterator[NatsServer]:
    """A real nats-server with JetStream for the tests of one module, in a temporary store."""
    with NatsServer() as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[NatsServer]:
    """A nats-server for one test alone, which may kill it, stop it or restart it."""
    with NatsServer() as server:
        yield server


@pytest.fixture
def settings(nats_server: NatsServer) -> Settings:
    """Settings with names of their own on the module's server."""
    return settings_for(nats_server)


@pytest.fixture(scope="session")
def cassandra_server() -> Iterator[CassandraServer | str]:
    """A real Cassandra for all tests of the run (6 s to start, 1 GB): each takes a keyspace of its own, by
    `on_cassandra.with_cassandra`. Where CASSANDRA_CONTACT_POINTS names a cluster, its contact points."""
    from on_cassandra import drop_keyspaces, running  # with the driver, for tests that need it only

    points = os.environ.get("CASSANDRA_CONTACT_POINTS", "")
    if points:
        yield points
        drop_keyspaces(points)
        return
    with running() as server:
        yield server


@pytest.fixture
def own_cassandra() -> Iterator[CassandraServer]:
    """A Cassandra for one test alone, which may kill it, freeze it or start it again."""
    from on_cassandra import running

    with running() as server:
        yield server
