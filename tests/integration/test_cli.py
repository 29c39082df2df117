"""The command line against a real nats-server: publish, verdicts, alarms, rejected, specs, status, where."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import uvloop
from fleet import connected, settings_for, until

from runtime import alarms, resources, specs, wire
from runtime.bucket import Bucket
from runtime.bus import Connection
from runtime.cli import guarded
from runtime.cli.app import execute
from runtime.cli.reading import Record, Start, bounds, read
from runtime.cli.snapshot import consumers_of
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.identity import Claim
from runtime.membership import Heart, Heartbeat, Load, State
from runtime.ownership import Ownership
from runtime.ownership_record import Owner
from runtime.records import Member, RingRecord
from runtime.specs import ChartSpec
from runtime.wire import Verdict

AT_NS = 1_740_816_000_000_000_000


def environ_of(settings: Settings) -> dict[str, str]:
    """The environment from which `settings` would be loaded."""
    usual = Settings()
    names = settings.__struct_fields__
    return {n.upper(): str(getattr(settings, n)) for n in names if getattr(settings, n) != getattr(usual, n)}


class Cli:
    """Runs commands in this process, as `main` would."""

    def __init__(self, settings: Settings, capture: pytest.CaptureFixture[str]) -> None:
        self.settings = settings
        self._capture = capture

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)"""
        self._capture.readouterr()
        code = guarded(lambda: execute(list(argv)))
        shown = self._capture.readouterr()
        return code, shown.out, shown.err

    def json(self, *argv: str) -> list[Any]:
        code, out, err = self(*argv, "--json")
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()]

    def with_server(self, work: Callable[[Connection], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            async with connected(self.settings) as connection:
                await resources.ensure(connection, self.settings)
                return await work(connection)

        return uvloop.run(run())

    def stored(self, stream: str, subject: str = ">") -> list[Record]:
        async def all_of(connection: Connection) -> list[Record]:
            return [record async for record in read(connection, stream, subject, Start())]

        found: list[Record] = self.with_server(all_of)
        return found


@pytest.fixture
def cli(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    yield from cli_for(settings, monkeypatch, capsys)


def cli_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    for name in Settings.__struct_fields__:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environ_of(settings).items():
        monkeypatch.setenv(name, value)
    handlers = logging.getLogger().handlers[:]
    yield Cli(settings, capsys)
    logging.getLogger().handlers[:] = handlers


def verdict(chamber: str, number: int, **fields: Any) -> Verdict:
    usual: dict[str, Any] = {
        "run": f"r{number}",
        "at": AT_NS + number,
        "charts": ["p", "q"],
        "counts": [number, 0],
        "units": [1.0, 2.0],
        "u": [float(number), 0.0],
        "centre": [0.5, 0.25],
        "lcl": [0.0, 0.0],
        "ucl": [2.6, 1.3],
        "flags": [int(number > 2), 0],
        "phase": [2, 1],
        "basis": [specs.basis(ChartSpec())] * 2,
        "stage": [1, 1],
        **fields,
    }
    return Verdict(
        chamber=chamber, seq=number, ordinal=number, epoch=3, spec=0, defender="defender-0", **usual
    )


def store_verdicts(cli: Cli, verdicts: list[Verdict]) -> None:
    names = cli.settings.names

    async def store(connection: Connection) -> None:
        for one in verdicts:
            subject = names.verdict(names.partition_of(one.chamber), one.chamber)
            await connection.store(subject, wire.msgpack_encoder.encode(one))
            alarm = alarms.encode_alarm(one)
            if alarm is not None:
                await connection.store(names.alarm(one.chamber), alarm)

    cli.with_server(store)


def test_publishing_a_file_stores_each_report_once_however_often_it_is_published(
    cli: Cli, tmp_path: Path
) -> None:
    lines = [
        f'{{"chamber": "E-{n % 3}", "run": "{n}", "charts": ["p"], "counts": [1], "units": [1]}}'
        for n in range(700)
    ]
    file = tmp_path / "reports.ndjson"
    file.write_text("\n".join(lines))
    for stored, repeated in ((700, 0), (0, 700)):
        (tally,) = cli.json("publish", str(file))
        assert (tally["stored"], tally["repeated"], tally["bad_lines"]) == (stored, repeated, 0)
    records = cli.stored(cli.settings.stream_samples)
    assert [record.payload.decode() for record in records] == lines
    names = cli.settings.names
    assert records[1].subject == names.incoming(names.partition_of("E-1"), "E-1")


def test_bad_lines_are_told_with_their_number_skipped_and_make_the_exit_code_1(
    cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "reports.csv"
    file.write_text("chamber,run,chart,count,units\nA,1,p,2,1\nA,1,q,many,1\nA,2,p,0,1\n")
    code, out, err = cli("publish", str(file))
    assert code == 1
    assert "2 reports stored, 0 known already, 1 bad lines skipped" in out
    assert "line 3: count 'many' is not a number" in err
    assert [wire.decode_incoming(r.payload).run for r in cli.stored(cli.settings.stream_samples)] == [
        "1",
        "2",
    ]


def test_a_rate_bounds_how_fast_reports_are_published(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "reports.ndjson"
    file.write_text("\n".join(f'{{"chamber": "A", "run": "{n}"}}' for n in range(41)))
    (tally,) = cli.json("publish", str(file), "--rate", "100")
    assert tally["seconds"] >= 0.4


def test_a_report_above_the_server_s_limit_is_a_bad_line_and_the_rest_is_published(
    cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "reports.ndjson"
    file.write_text(f'{{"chamber": "A", "run": "{"x" * 1_100_000}"}}\n{{"chamber": "A", "run": "1"}}\n')
    code, out, err = cli("publish", str(file))
    assert code == 1
    assert out.startswith("1 reports stored")
    assert "above the server's max_payload" in err


def test_reports_from_a_pipe_are_published_while_it_is_open(cli: Cli) -> None:
    async def one_is_stored(connection: Connection) -> None:
        async def stored() -> bool:
            return (await bounds(connection, cli.settings.stream_samples))[1] == 1

        await until(stored, what="the first report is stored")

    command = [sys.executable, "-m", "runtime", "publish", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    ) as publisher:
        assert publisher.stdin is not None
        publisher.stdin.write(b'{"chamber": "A", "run": "1"}\n')
        publisher.stdin.flush()
        cli.with_server(one_is_stored)
        out, _ = publisher.communicate(b'{"chamber": "A", "run": "2"}')
    assert out.startswith(b"2 reports stored")


def test_verdicts_shows_the_newest_and_what_the_filters_let_pass(cli: Cli) -> None:
    store_verdicts(cli, [verdict(f"E-{n % 2}", n) for n in range(1, 31)])
    code, out, _ = cli("verdicts")
    assert code == 0
    assert len(out.splitlines()) == 1 + 2 * 20, "a heading, and two charts of each of the newest 20"
    assert [v["seq"] for v in cli.json("verdicts", "--last", "3")] == [28, 29, 30]
    assert [v["seq"] for v in cli.json("verdicts", "--last", "2", "--chamber", "E-1")] == [27, 29]
    assert [v["seq"] for v in cli.json("verdicts", "--last", "2", "--chamber", "?-0")] == [28, 30]
    assert len(cli.json("verdicts", "--since", "all")) == 30
    assert len(cli.json("verdicts", "--since", "1h", "--last", "4")) == 4
    assert cli.json("verdicts", "--since", "2100-01-01T00:00:00Z") == []
    assert cli.json("verdicts", "--last", "0") == []
    _, out, _ = cli("verdicts", "--chart", "q", "--last", "1")
    assert out.splitlines()[1].split()[4] == "q"


def test_the_newest_matches_are_found_however_far_back_they_lie(cli: Cli) -> None:
    store_verdicts(cli, [verdict("RARE", 1), *(verdict("A", n) for n in range(2, 1200))])
    assert cli.settings.history_depth < 1198
    assert [v["chamber"] for v in cli.json("verdicts", "--chamber", "R*", "--last", "1")] == ["RARE"]


def test_verdicts_of_several_shards_come_in_the_order_of_their_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = settings_for(NatsServer(), partitions=128).names
    with NatsServer(names=names) as server:
        settings = msgspec.structs.replace(settings_for(server, partitions=128), subject_root=names.root)
        for cli in cli_for(settings, monkeypatch, capsys):
            store_verdicts(cli, [verdict(f"E-{n}", n) for n in range(1, 41)])
            seqs = [v["seq"] for v in cli.json("verdicts", "--since", "all")]
            assert seqs == list(range(1, 41))
            assert [v["seq"] for v in cli.json("verdicts", "--last", "5")] == seqs[-5:]


def test_following_goes_on_over_a_restart_of_the_server(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for cli in cli_for(settings_for(own_server), monkeypatch, capsys):
        store_verdicts(cli, [verdict("A", 1)])
        command = [sys.executable, "-m", "runtime", "verdicts", "--follow", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as follower:
            assert follower.stdout is not None
            assert json.loads(follower.stdout.readline())["seq"] == 1
            store_verdicts(cli, [verdict("A", 2)])
            assert json.loads(follower.stdout.readline())["seq"] == 2
            own_server.restart()
            store_verdicts(cli, [verdict("A", 3)])
            assert json.loads(follower.stdout.readline())["seq"] == 3
            follower.send_signal(signal.SIGINT)
            try:
                assert follower.wait(10) == 130
            finally:
                follower.kill()


def test_alarms_are_sentences_and_only_of_charts_that_signal(cli: Cli) -> None:
    store_verdicts(cli, [verdict("A", n) for n in range(1, 5)])
    code, out, _ = cli("alarms", "--since", "all")
    assert code == 0
    assert [line.split("  ")[-1].strip() for line in out.splitlines()[1:]] == [
        "p: u 3 is above UCL 2.6",
        "p: u 4 is above UCL 2.6",
    ]
    (last,) = cli.json("alarms", "--last", "1", "--chamber", "A")
    assert last["charts"][0]["rules"] == [1]


def test_rejected_gives_the_reason_and_the_original_bytes_back(cli: Cli) -> None:
    problems = [{"reason": "undecodable", "detail": "neither JSON nor MessagePack"}]
    lines = {"Tfdc-Reason": "undecodable", "Tfdc-Problems": json.dumps(problems), "Tfdc-Chamber": "A"}
    headers = "".join(f"{name}:{value}\r\n" for name, value in lines.items()).encode()
    subject = cli.settings.names.reject("A")
    cli.with_server(lambda connection: connection.store(subject, b"\xff{", headers=headers))
    (message,) = cli.json("rejected")
    assert (message["chamber"], message["reason"], message["payload_base64"]) == ("A", "undecodable", "/3s=")
    _, out, _ = cli("rejected", "--chamber", "A")
    assert out.splitlines()[1].endswith("neither JSON nor MessagePack")


def test_before_any_defender_ran_verdicts_names_the_setting_and_specs_shows_the_built_in_default(
    cli: Cli,
) -> None:
    code, _, err = cli("verdicts")
    assert (code, "correct NATS_SERVERS, STREAM_VERDICTS or PARTITIONS" in err) == (65, True)
    code, out, err = cli("specs", "show")
    assert (code, out) == (0, "{}\n")
    assert "built-in default" in err
    assert cli("specs", "show", "--history")[:2] == (0, "")
    assert cli("status")[0] == 65
    assert cli.with_server(lambda connection: connection.api("STREAM.NAMES")) is not None


def specs_in_force(cli: Cli) -> tuple[specs.Specs, int]:
    async def get(connection: Connection) -> tuple[specs.Specs, int]:
        bucket = Bucket(connection, cli.settings.nats_kv_chart_specs, random=Random(1))
        entry = await bucket.get(specs.KEY)
        assert entry is not None
        assert entry.value is not None
        return specs.decode(entry.value), entry.revision

    found: tuple[specs.Specs, int] = cli.with_server(get)
    return found


def test_applied_specs_are_in_the_bucket_and_their_revisions_are_kept(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "specs.yaml"
    for k in (2, 2.5):
        file.write_text(f"charts: [{{chamber: 'E-*', k: {k}}}]")
        code, out, err = cli("specs", "apply", str(file))
        assert code == 0, err
    in_force, revision = specs_in_force(cli)
    assert in_force.charts == (ChartSpec("E-*", k=2.5),)
    assert out == f"applied: revision {revision}\n"
    assert "nothing changes" in cli("specs", "apply", str(file))[2]
    _, shown, _ = cli("specs", "show")
    file.write_text(shown)
    assert "nothing changes" in cli("specs", "apply", str(file))[2], "what is shown can be applied"
    (rows,) = cli.json("specs", "show", "--history")
    assert [row["entries"] for row in rows] == [1, 1]
    (old,) = cli.json("specs", "show", "--revision", str(rows[0]["revision"]))
    assert old["specs"]["charts"][0]["k"] == 2
    assert cli("specs", "show", "--revision", "999")[0] == 65


def test_a_dry_run_and_a_check_store_nothing(cli: Cli, tmp_path: Path) -> None:
    store_verdicts(cli, [verdict("E-1", 1), verdict("F-1", 2)])
    file = tmp_path / "specs.yaml"
    file.write_text("charts: [{name: etch, chamber: 'E-*', k: 2}]")
    code, out, _ = cli("specs", "check", str(file))
    assert code == 0
    assert out.splitlines()[1].split()[:4] == ["2", "charts", "charts[0]", "(etch):"]
    assert out.splitlines()[-1].strip() == "2 of 4 charts seen would start a new stage"
    code, out, _ = cli("specs", "check", str(file), "--chamber", "F-1", "--chart", "p")
    assert out.splitlines()[-2].startswith("* default: no entry before it matches")
    assert cli("specs", "apply", str(file), "--dry-run")[0] == 0
    assert cli("specs", "show")[1] == "{}\n"
    assert cli("specs", "check", str(file), "--chart", "p")[0] == 65


def test_adopting_where_no_chart_is_frozen_stores_nothing(cli: Cli) -> None:
    assert "nothing changes: the built-in default" in cli("specs", "adopt")[2]
    assert cli.json("specs", "show", "--history") == [[]]


def test_adopting_takes_the_centre_lines_of_frozen_charts_in_phase_two_and_no_others(cli: Cli) -> None:
    store_verdicts(cli, [verdict("A", 1), verdict("B", 2), verdict("C", 3, basis=[7, 7])])
    code, _, err = cli("specs", "adopt", "--chamber", "[AC]")
    assert code == 0, err
    assert "1 of 4 charts have a frozen centre line" in err
    in_force, _ = specs_in_force(cli)
    assert in_force.charts == (ChartSpec("A", "p", baseline=specs.Baseline.GIVEN, centre=0.5),)


async def take_part(connection: Connection, settings: Settings) -> None:
    """What a defender with one ID writes, and the leader: claim, ring, partitions but one, heartbeat."""
    random, now, stable_id = Random(1), datetime.now(UTC), "defender-0"
    pod = (settings.pod_uid, settings.pod_name, settings.track, settings.revision)

    def beat() -> Heartbeat:
        load = Load(workers=2, slots_used=1, slots_total=4)
        served = list(range(settings.partitions - 1))
        return Heartbeat(*pod, State.ACTIVE, now, stable_id, partitions=served, load=load)

    for bucket, key, value in (
        (settings.nats_kv_stable_ids, stable_id, Claim(stable_id, *pod, now, "s")),
        (
            settings.nats_kv_assignments,
            "ring",
            RingRecord(1, settings.partitions, {stable_id: Member("stable")}),
        ),
        (settings.nats_kv_leader, "leader", {"pod_name": settings.pod_name, "term": 1}),
    ):
        await Bucket(connection, bucket, random=random).put(key, msgspec.json.encode(value))
    owner = Owner(stable_id, settings.pod_uid)
    await Ownership(connection, settings, owner, random=random).take_over(range(settings.partitions - 1))
    await Heart(Bucket(connection, settings.nats_kv_heartbeats, random=random), beat, every_s=2).beat_now()


def test_consumers_are_read_page_by_page(cli: Cli) -> None:
    async def count(connection: Connection) -> int:
        stream = cli.settings.stream_samples
        config = {"ack_policy": "none", "mem_storage": True, "inactive_threshold": 60 * 10**9}
        request = {"stream_name": stream, "config": config}
        for _ in range(300):
            await connection.api(f"CONSUMER.CREATE.{stream}", request)
        return len([consumer async for consumer in consumers_of(connection, stream)])

    assert cli.with_server(count) == 300, "a page has 256"


def test_status_and_where_show_who_holds_what_as_the_buckets_have_it(cli: Cli) -> None:
    settings = msgspec.structs.replace(cli.settings, pod_uid="uid-1", pod_name="pod-1")

    async def prepare(connection: Connection) -> None:
        await take_part(connection, settings)
        for n in range(70):
            await connection.store(settings.names.sample(f"E-{n % 7}"), b"{}")

    cli.with_server(prepare)
    (tree,) = cli.json("status")
    assert tree["trouble"] == ["1 of 64 partitions have no live owner: 63"]
    (row,) = tree["defenders"]
    expected = {
        "stable_id": "defender-0",
        "pod": "pod-1",
        "state": "active",
        "partitions": 63,
        "cache_used": 0.25,
    }
    assert row.items() >= expected.items()
    served = [n for n in range(7) if settings.names.partition_of(f"E-{n}") != 63]
    assert sum(p["waiting"] for p in tree["partitions"]) == 10 * len(served)
    code, out, _ = cli("status", "--partitions")
    assert code == 0
    assert len([line for line in out.splitlines() if " owned " in line and "pod-1" in line]) == 63
    (place,) = cli.json("where", "E-3")
    partition = settings.names.partition_of("E-3")
    assert (place["partition"], place["owner_by_ring"], place["row"]["waiting"]) == (
        partition,
        "defender-0",
        10,
    )
    assert place["consumer"] == settings.names.consumer(partition, place["row"]["epoch"])
    _, out, _ = cli("where", "E-3")
    assert "owner      defender-0 (owned, pod pod-1)" in out
    assert cli("where", "no such")[0] == 65
