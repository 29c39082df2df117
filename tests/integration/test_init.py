"""``defender init`` on real servers: it makes what is missing, tells what differs; ``--check`` only looks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from cassandra_server import CassandraServer
from fleet import settings_for
from on_cassandra import on_cassandra
from test_cli import Cli, environ_of

from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.history import cluster, schema

Server = CassandraServer | str
STREAMS = 9
TABLES = 5
"""Parts of the history: the keyspace, three tables, what they were made for."""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function from settings to a command line that runs with them."""

    def of(settings: Settings) -> Cli:
        for name in settings.__struct_fields__:
            monkeypatch.delenv(name.upper(), raising=False)
        for name, value in environ_of(settings).items():
            monkeypatch.setenv(name, value)
        return Cli(settings, capsys)

    return of


def states(out: str) -> dict[str, list[str]]:
    """The parts' names by their state."""
    found: dict[str, list[str]] = {}
    for part in json.loads(out)["parts"]:
        found.setdefault(part["state"], []).append(part["name"])
    return found


def test_init_makes_the_streams_once_and_finds_them_ever_after(cli: Any, settings: Settings) -> None:
    defender = cli(settings)
    code, out, _ = defender("init", "--check", "--json")
    assert (code, {state: len(parts) for state, parts in states(out).items()}) == (78, {"missing": STREAMS})
    code, out, err = defender("init", "--check")
    assert code == 78
    assert f"missing  stream {settings.stream_samples}" in out
    assert f"{STREAMS} of {STREAMS} are missing or differ: run: defender init" in err
    code, out, _ = defender("init", "--json")
    assert (code, {state: len(parts) for state, parts in states(out).items()}) == (0, {"made": STREAMS})
    code, out, _ = defender("init")
    assert code == 0
    assert f"there    stream {settings.stream_samples}" in out
    assert f"all {STREAMS} are there" in out
    assert defender("init", "--check")[0] == 0


def test_init_tells_each_stream_that_differs_and_makes_the_others(cli: Any, nats_server: NatsServer) -> None:
    settings = settings_for(nats_server)
    other = settings_for(nats_server)
    foreign = msgspec.structs.replace(other, nats_kv_stable_ids=settings.nats_kv_stable_ids, lease_ttl_s=60)
    defender = cli(foreign)
    assert defender("init")[0] == 0
    defender = cli(settings)
    code, out, err = defender("init")
    assert code == 78
    assert f"differs  bucket {settings.nats_kv_stable_ids}" in out
    assert "max_age is 60 s, must be 30 s" in out
    assert out.count("  made ") == STREAMS - 1
    assert f"1 of {STREAMS} are missing or differ: see above" in err
    code, out, _ = defender("init", "--json")
    assert code == 78
    assert states(out)["differs"] == [f"bucket {settings.nats_kv_stable_ids}"]


def test_init_makes_keyspace_and_tables_once(cli: Any, settings: Settings, cassandra_server: Server) -> None:
    changed = on_cassandra(settings, cassandra_server)
    defender = cli(changed)
    code, out, _ = defender("init", "--check", "--json")
    assert (code, len(states(out)["missing"])) == (78, STREAMS + TABLES)
    code, out, _ = defender("init", "--json")
    assert (code, len(states(out)["made"])) == (0, STREAMS + TABLES)
    code, out, _ = defender("init", "--check")
    assert code == 0
    assert f"there    keyspace {changed.cassandra_keyspace}" in out
    opened, session = cluster.open_cluster(changed)
    try:
        schema.check(session, changed)
    finally:
        opened.shutdown()


def test_init_follows_a_changed_ttl_and_tells_of_another_replication(
    cli: Any, settings: Settings, cassandra_server: Server
) -> None:
    changed = on_cassandra(settings, cassandra_server)
    assert cli(changed)("init")[0] == 0
    defender = cli(msgspec.structs.replace(changed, history_ttl_s=10 * 86_400))
    code, out, _ = defender("init", "--check")
    assert code == 78
    assert "keeps new rows 864000 s (HISTORY_TTL_S), before 7776000 s" in out
    code, out, _ = defender("init")
    assert code == 0
    assert "changed  settings of the tables" in out
    assert defender("init", "--check")[0] == 0
    defender = cli(
        msgspec.structs.replace(changed, history_ttl_s=10 * 86_400, cassandra_replication="datacenter1:3")
    )
    code, out, _ = defender("init")
    assert code == 0
    assert f"ALTER KEYSPACE {changed.cassandra_keyspace} WITH replication" in out
    assert "asks for 3 replicas in datacenter1, it has 1 nodes" in out


def test_init_refuses_a_keyspace_that_was_made_for_other_partitions(
    cli: Any, settings: Settings, cassandra_server: Server
) -> None:
    changed = on_cassandra(settings, cassandra_server)
    assert cli(changed)("init")[0] == 0
    own = settings_for(changed.nats_servers)
    other = msgspec.structs.replace(
        changed,
        **{
            name: getattr(own, name)
            for name in own.__struct_fields__
            if name.startswith(("nats_", "stream_"))
        },
        subject_root=own.subject_root,
        partitions=32,
    )
    code, out, _ = cli(other)("init")
    assert code == 78
    assert f"PARTITIONS is 32, and {changed.cassandra_keyspace} was made for 64" in out


def test_init_says_which_server_does_not_answer(cli: Any, settings: Settings) -> None:
    code, _, err = cli(msgspec.structs.replace(settings, nats_servers="nats://127.0.0.1:1"))("init")
    assert code == 69
    assert "127.0.0.1:1" in err
    changed = on_cassandra(settings, "127.0.0.1:1")
    code, out, err = cli(changed)("init")
    assert code == 69
    assert "made     stream" in out
    assert "Cassandra at 127.0.0.1:1: no node answers" in err
    assert len(err.splitlines()) == 1
