"""``defender history`` between a real nats-server and a real Cassandra: there, back, what is in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import drawn
import pytest
from cassandra_server import CassandraServer
from fleet import settings_for
from msgspec.structs import replace
from on_cassandra import on_cassandra, with_cassandra
from test_cli import Cli, cli_for, store_verdicts

from runtime.bus import Connection
from runtime.config import History, Settings
from runtime.embedded import NatsServer
from runtime.history_copy import published
from runtime.wire import Verdict

CHAMBERS = ("ETCH-07", "ETCH-08", "CVD-01")
TO_CASSANDRA = ("history", "copy", "--from", "jetstream", "--to", "cassandra")
TO_JETSTREAM = ("history", "copy", "--from", "cassandra", "--to", "jetstream")


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    """Of three chambers, as a worker judged them; with CUSUM, EWMA, alarms, resets, samples left out."""
    scenes = zip(CHAMBERS, (drawn.two_phases, drawn.varying_units, drawn.clustered), strict=True)
    return [
        replace(one, chamber=chamber, seq=len(CHAMBERS) * one.seq + place)
        for place, (chamber, scene) in enumerate(scenes)
        for one in scene().verdicts
    ]


def settings_on(nats: NatsServer) -> Settings:
    return settings_for(nats, partitions=8, cassandra_timeout_s=2.0)


@pytest.fixture
def settings(nats_server: NatsServer, cassandra_server: CassandraServer | str) -> Settings:
    return with_cassandra(settings_on(nats_server), cassandra_server, history=History.JETSTREAM)


@pytest.fixture
def cli(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    monkeypatch.delenv("COLUMNS", raising=False)
    yield from cli_for(settings, monkeypatch, capsys)


def publish(cli: Cli, verdicts: list[Verdict]) -> None:
    """As a worker does; the samples have come that far."""
    names = cli.settings.names

    async def store(connection: Connection) -> None:
        await connection.api(f"STREAM.PURGE.{names.samples}", {"seq": 100_000})
        for one in verdicts:
            subject = names.verdict(names.partition_of(one.chamber), one.chamber)
            headers = f"Nats-Msg-Id:{names.samples}:{one.seq}\r\n".encode()
            await connection.store(subject, published(one), headers=headers)

    cli.with_server(store)


def payloads(cli: Cli, chamber: str) -> list[bytes]:
    """The verdicts of a chamber in the stream."""
    names = cli.settings.names
    subject = names.verdict(names.partition_of(chamber), chamber)
    return [record.payload for record in cli.stored(names.verdicts, subject)]


def test_a_history_that_went_there_and_back_is_the_same_byte_for_byte(
    cli: Cli, verdicts: list[Verdict]
) -> None:
    """Counts at the end; a second copy finds all there; with an empty stream all comes back, in order."""
    publish(cli, verdicts)
    before = {chamber: payloads(cli, chamber) for chamber in CHAMBERS}
    (there,) = cli.json(*TO_CASSANDRA)
    assert (there["chambers"], there["read"], there["stored"]) == (3, len(verdicts), len(verdicts))
    assert (there["equal"], there["troubles"], there["troubled"]) == (True, {}, [])
    code, out, err = cli(*TO_CASSANDRA)
    assert (code, err) == (0, "")
    told = f"JetStream → Cassandra: 3 chambers, {len(verdicts):,} reports; 0 stored, {len(verdicts):,} there"
    assert out.strip() == f"{told} already; compared: equal"
    cli.with_server(lambda connection: connection.api(f"STREAM.DELETE.{cli.settings.stream_verdicts}"))
    (back,) = cli.json(*TO_JETSTREAM)
    assert (back["stored"], back["equal"]) == (len(verdicts), True)
    assert {chamber: payloads(cli, chamber) for chamber in CHAMBERS} == before
    (again,) = cli.json(*TO_JETSTREAM)
    assert (again["stored"], again["there"], again["equal"]) == (0, len(verdicts), True)


def test_only_the_chambers_that_are_named_are_copied(cli: Cli, verdicts: list[Verdict]) -> None:
    publish(cli, verdicts)
    (done,) = cli.json(*TO_CASSANDRA, "--chamber", "ETCH-*")
    assert done["chambers"] == 2
    kept = {one["chamber"] for one in cli.json("history", "show", "--store", "cassandra")}
    assert kept == {"ETCH-07", "ETCH-08"}
    code, _, err = cli(*TO_CASSANDRA, "--chamber", "ETCH-7")
    assert (code, "there are those of ETCH-07, ETCH-08" in err) == (65, True)


def test_both_stores_show_and_export_the_same(cli: Cli, verdicts: list[Verdict], tmp_path: Path) -> None:
    publish(cli, verdicts)
    assert cli(*TO_CASSANDRA)[0] == 0
    for command in (
        ("show",),
        ("show", "--since", "all", "--until", "1m"),
        ("show", "ETCH-07", "--last", "200"),
        ("show", "ETCH-08", "--chart", drawn.CHART, "--json"),
        ("export", "-"),
        ("export", "-", "--chamber", "CVD-01"),
    ):
        found = [cli("history", *command, "--store", store) for store in ("jetstream", "cassandra")]
        assert found[0] == found[1]
        assert found[0][0] == 0
        assert len(found[0][1].splitlines()) > 2


def test_a_refusal_names_the_chambers_and_the_way_out(cli: Cli, verdicts: list[Verdict]) -> None:
    """The stream has a newer verdict and lacks the older ones; the others are compared all the same."""
    publish(cli, verdicts)
    assert cli(*TO_CASSANDRA)[0] == 0
    names = cli.settings.names
    subject = names.verdict(names.partition_of("ETCH-07"), "ETCH-07")
    keep = {"filter": subject, "keep": 1}
    cli.with_server(lambda connection: connection.api(f"STREAM.PURGE.{names.verdicts}", keep))
    code, out, err = cli(*TO_JETSTREAM)
    assert (code, err) == (1, "")
    missing = sum(one.chamber == "ETCH-07" for one in verdicts) - 1
    assert "compared: they differ" in out
    assert f"  ETCH-07: {missing} older\n" in out
    assert "a stream takes nothing in before what it has" in out
    assert len(payloads(cli, "ETCH-07")) == 1


def test_a_keyspace_that_was_never_made_asks_for_init(
    nats_server: NatsServer,
    cassandra_server: CassandraServer | str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for cli in cli_for(on_cassandra(settings_on(nats_server), cassandra_server), monkeypatch, capsys):
        store_verdicts(cli, [])
        for command in (("show",), ("export", "-"), TO_CASSANDRA[1:]):
            code, out, err = cli("history", *command)
            assert (code, out) == (78, "")
            assert "run: defender init" in err
            assert "reports wait" not in err, "that is of a worker's log"


@pytest.mark.limit_s(120)
def test_a_cassandra_that_dies_ends_a_copy_which_can_be_made_again(
    nats_server: NatsServer,
    own_cassandra: CassandraServer,
    verdicts: list[Verdict],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The error says so. A lone node that is killed may lose what it took last: the next copy finds out."""
    from runtime.history.cassandra import CassandraHistory

    settings = with_cassandra(settings_on(nats_server), own_cassandra, history=History.JETSTREAM)
    append, calls = CassandraHistory.append, []

    async def dies(self: CassandraHistory, messages: list[tuple[str, str, bytes]]) -> None:
        calls.append(len(messages))
        if len(calls) == 4:
            own_cassandra.kill()
        await append(self, messages)

    for cli in cli_for(settings, monkeypatch, capsys):
        publish(cli, verdicts)
        monkeypatch.setattr(CassandraHistory, "append", dies)
        code, out, err = cli(*TO_CASSANDRA)
        assert (code, out) == (69, "")
        assert "Cassandra at " in err
        assert "copy again: what is there is passed over" in err
        code, _, err = cli("history", "show", "--store", "cassandra")
        assert (code, "correct CASSANDRA_CONTACT_POINTS" in err) == (69, True)
        own_cassandra.start()
        (done,) = cli.json(*TO_CASSANDRA)
        assert (done["read"], done["equal"]) == (len(verdicts), True)
