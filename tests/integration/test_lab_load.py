"""The lab's load: what its reports are, and that each is stored once whatever befalls the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fleet import connected, settings_for, until
from load import read_stream

from bench.lab.errors import LabError, NotInTime
from bench.lab.load import SPECS, Producers
from bench.lab.load_producer import SAY_S
from bench.lab.load_reports import EXCURSION_LEAST, Reports, Schedule, chamber_name, divided, weights
from bench.lab.scenario import LoadOf
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.frames import header
from runtime.names import Names
from runtime.resources import ensure
from runtime.specs import problems_of
from runtime.wire import Report
from tests.oracle import Stored

ROOT = Path(__file__).parents[2]
NS = 10**9


def decoded(payload: bytes) -> Report:
    of = msgspec.json if payload[:1] == b"{" else msgspec.msgpack
    return of.decode(payload, type=Report)


def made(load: LoadOf, count: int, *, producer: int = 0, first: int = 0) -> list[tuple[str, Report]]:
    """(chamber, report) of a producer's frames."""
    reports = Reports(load, Names(), divided(load)[producer], "t-", b"_INBOX.x")
    found = []
    for _, frame in reports.frames(first, np.arange(NS, NS + count)):
        line, _, rest = frame.partition(b"\r\n")
        _, subject, _, header_bytes, total = line.split()
        assert len(rest) == int(total) + 2
        payload = rest[int(header_bytes) : -2]
        report = decoded(payload)
        assert header(rest[: int(header_bytes)], b"Nats-Msg-Id") == report.run.encode()
        found.append((subject.decode().rpartition(".")[2], report))
    return found


def test_the_specs_can_be_applied() -> None:
    assert not problems_of(SPECS, Settings().window)


@pytest.mark.parametrize("encoding", ["msgpack", "json", "mixed"])
@pytest.mark.parametrize("samples", [1, 10, 400])
def test_every_report_is_one_by_the_wire(encoding: Any, samples: int) -> None:
    load = LoadOf(encoding=encoding, samples=samples, chambers=20)
    found = made(load, 300)
    assert {len(report.charts) for _, report in found} == {samples}
    assert all(len(r.counts) == len(r.units) == len(set(r.charts)) == samples for _, r in found)
    assert len({report.run for _, report in found}) == 300
    assert [report.at for _, report in found] == list(range(NS, NS + 300))


def test_a_report_follows_from_the_seed_and_its_number_alone() -> None:
    load = LoadOf(chambers=20, seed=7)

    def drawn(found: list[tuple[str, Report]]) -> list[Any]:
        return [(chamber, r.run, r.counts, r.units) for chamber, r in found]

    assert drawn(made(load, 3000))[1000:] == drawn(made(load, 2000, first=1000))
    other = msgspec.structs.replace(load, seed=8)
    assert drawn(made(load, 100)) != drawn(made(other, 100))


def test_one_report_in_so_many_has_one_chart_far_out() -> None:
    found = made(LoadOf(excursion_every=50), 20_000)
    planted = [sum(count >= EXCURSION_LEAST for count in r.counts) for _, r in found]
    assert Counter(planted).keys() == {0, 1}
    assert 300 < sum(planted) < 500
    assert not any(max(r.counts) >= EXCURSION_LEAST for _, r in made(LoadOf(excursion_every=0), 5000))


def test_the_kth_chamber_reports_in_proportion_to_the_skew() -> None:
    load = LoadOf(skew=1.0, chambers=50)
    seen = Counter(chamber for chamber, _ in made(load, 30_000))
    whole = sum(1 / k for k in range(1, 51))
    for k in (1, 2, 10, 50):
        assert seen[chamber_name(k - 1)] == pytest.approx(30_000 / k / whole, rel=0.25)


@pytest.mark.parametrize(("skew", "producers"), [(0.0, 1), (0.0, 3), (1.2, 4), (0.0, 10)])
def test_each_chamber_has_one_producer_and_all_have_much_the_same_to_do(skew: float, producers: int) -> None:
    parts = divided(LoadOf(chambers=1000, skew=skew, producers=producers))
    assert sorted(place for part in parts for place in part.chambers) == list(range(1000))
    shares = [part.share for part in parts]
    assert sum(shares) == pytest.approx(1.0)
    assert max(shares) <= max(1.2 / producers, weights(LoadOf(chambers=1000, skew=skew))[0] * 1.001)


@pytest.mark.parametrize("burst", [1, 5])
def test_reports_fall_due_evenly_at_each_rate(burst: int) -> None:
    schedule = Schedule(burst)
    schedule.change(10 * NS, 100.0)
    assert schedule.due_by(10 * NS - 1) == 0
    assert schedule.due_by(10 * NS) == burst
    schedule.change(11 * NS, 1000.0)
    schedule.change(12 * NS, 0.0)
    total = schedule.due_by(10**6 * NS)
    assert total == 1100 + burst, "no more at the change of the rate than at any time"
    due_ns = schedule.due_ns(0, total)
    assert list(due_ns) == sorted(due_ns)
    assert due_ns[burst] - due_ns[0] == burst * NS // 100
    assert due_ns[500 + burst] - due_ns[500] == burst * NS // 1000
    assert [schedule.due_ns(n, 1)[0] for n in (0, 99, 100, 700)] == [due_ns[n] for n in (0, 99, 100, 700)]
    schedule.change(20 * NS, 10.0)
    assert schedule.due_ns(total, 1)[0] == 20 * NS


@pytest.mark.parametrize("seen_ns", [11 * NS, 11 * NS + 1, 11 * NS + 3_333_333])
def test_what_is_due_is_never_due_later_than_now(seen_ns: int) -> None:
    schedule = Schedule(3)
    schedule.change(10 * NS, 777.7)
    due = schedule.due_by(seen_ns)
    assert schedule.due_ns(0, due).max() <= seen_ns < schedule.due_ns(due, 1)[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reports_per_s": float("nan")}, "reports_per_s is nan"),
        ({"chambers": 0}, "chambers is 0"),
        ({"samples": 5000}, "samples is 5000: give 1 to 4096"),
        ({"skew": -1.0}, "skew is -1.0"),
        ({"burst": 0, "seed": -1}, "burst is 0: give 1 or more; seed is -1"),
        ({"producers": 3, "chambers": 2}, "3 producers for 2 chambers"),
    ],
)
def test_a_load_that_cannot_be_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(LabError, match=told):
        Producers(Settings(), LoadOf(**changes))


async def stored_in(settings: Settings) -> list[Stored]:
    async with connected(settings) as connection:
        return await read_stream(connection, settings.stream_samples)


async def prepare(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)


async def test_each_report_is_stored_once_and_a_chambers_in_the_order_of_their_times(
    settings: Settings,
) -> None:
    await prepare(settings)
    load = LoadOf(reports_per_s=2000, chambers=30, producers=2, skew=0.5)
    async with Producers(settings, load) as producers:
        await until(lambda: producers.progress().stored > 1000, what="1000 stored")
        produced = await producers.finish(10.0)
    stored = await stored_in(settings)
    assert produced.stored == produced.published == len(stored)
    assert produced.again == produced.refused == 0
    reports = [(one.subject.rpartition(".")[2], decoded(one.payload), one.payload[:1]) for one in stored]
    assert len({report.run for _, report, _ in reports}) == len(reports)
    by_chamber = defaultdict(list)
    for chamber, report, first_byte in reports:
        by_chamber[chamber].append((report.at, first_byte == b"{", report.run.rpartition("-")[0]))
    assert len(by_chamber) == 30
    kinds = set()
    for of_chamber in by_chamber.values():
        times, is_json, tokens = zip(*of_chamber, strict=True)
        assert list(times) == sorted(times)
        assert len(set(is_json)) == len(set(tokens)) == 1, "one encoding and one producer a chamber"
        kinds.add((is_json[0], tokens[0]))
    assert len(kinds) == 4, "both producers publish both encodings"


async def test_the_rate_may_change_and_rest(settings: Settings) -> None:
    await prepare(settings)
    async with Producers(settings, LoadOf(reports_per_s=100)) as producers:
        await until(lambda: producers.progress().stored > 20, what="20 stored")
        await producers.set_rate(5000)
        await until(lambda: producers.progress().stored > 2000, deadline_s=3.0, what="2000 stored")
        await producers.set_rate(0)
        dues = []
        for _ in range(2):  # the first one's end: the order was obeyed
            told_s = producers.progress().seconds
            await until(lambda told_s=told_s: producers.progress().seconds > told_s + 2 * SAY_S)
            dues.append(producers.progress().due)
        assert dues[0] == dues[1] == (await producers.finish(5.0)).due


async def test_the_time_that_the_server_was_away_shows_in_the_reports_times(own_server: NatsServer) -> None:
    settings = settings_for(own_server)
    await prepare(settings)
    away_s = 1.0
    async with Producers(settings, LoadOf(reports_per_s=3000, producers=2)) as producers:
        await until(lambda: producers.progress().stored > 1000, what="1000 stored")
        own_server.kill()
        killed_s = time.monotonic()
        await until(lambda: time.monotonic() > killed_s + away_s)
        own_server.start()
        up = producers.progress().due
        await until(lambda: producers.progress().stored > up + 1000, deadline_s=15, what="more stored")
        produced = await producers.finish(15.0)
    stored = await stored_in(settings)
    assert produced.stored == produced.published == len(stored)
    assert len({decoded(one.payload).run for one in stored}) == len(stored)
    waits_s = [(one.time_ns - decoded(one.payload).at) / NS for one in stored]  # type: ignore[operator]
    assert max(waits_s) > 0.9 * away_s
    assert produced.late_ms_max < 0.5 * away_s * 1000, "the server's absence is not the producers' fault"


async def test_what_the_server_refuses_is_sent_until_it_is_stored(settings: Settings) -> None:
    await prepare(settings)
    async with Producers(settings, LoadOf(reports_per_s=500)) as producers:
        await until(lambda: producers.progress().stored > 50, what="50 stored")
        async with connected(settings) as connection:
            await connection.api(f"STREAM.DELETE.{settings.stream_samples}")
            await until(lambda: producers.progress().refused > 0, what="a refusal")
            assert "no stream takes this subject" in producers.problem
            await ensure(connection, settings)
        before = producers.progress().stored
        await until(lambda: producers.progress().stored > before + 200, what="stored again")
        produced = await producers.finish(5.0)
    runs = [decoded(one.payload).run for one in await stored_in(settings)]
    assert produced.stored == produced.published
    assert len(runs) == len(set(runs)) > 200
    assert produced.again > 0


async def test_what_is_not_stored_in_time_is_told_and_no_producer_is_left(own_server: NatsServer) -> None:
    settings = settings_for(own_server)
    await prepare(settings)
    producers = Producers(settings, LoadOf(reports_per_s=2000))
    await producers.begin()
    await until(lambda: producers.progress().stored > 100, what="100 stored")
    own_server.pause()
    published = producers.progress().published
    await until(lambda: producers.progress().published > published + 100, what="more published")
    with pytest.raises(NotInTime, match=r"reports were not stored within 0\.3 s"):
        await producers.finish(0.3)
    assert not any(Path(f"/proc/{pid}").exists() for pid in producers.pids)


async def test_a_producer_that_ends_by_itself_ends_the_load(settings: Settings) -> None:
    await prepare(settings)
    async with Producers(settings, LoadOf()) as producers:
        os.kill(producers.pids[0], signal.SIGKILL)
        with pytest.raises(LabError, match="producer 0 ended by itself with code -9"):
            await until(lambda: producers.progress() and False)


async def test_reports_that_nobody_would_take_are_refused_at_the_start(settings: Settings) -> None:
    small = msgspec.structs.replace(settings, report_bytes_max=500)
    with pytest.raises(LabError, match="REPORT_BYTES_MAX is 500: give fewer samples"):
        await Producers(small, LoadOf(samples=100)).begin()


async def test_without_a_server_no_load_begins() -> None:
    with pytest.raises(LabError, match="no NATS server answered"):
        await Producers(Settings(nats_servers="nats://127.0.0.1:1"), LoadOf()).begin()


PARENT = """
import asyncio, sys, msgspec
from bench.lab.load import Producers
from bench.lab.scenario import LoadOf
from runtime.config import Settings
async def main():
    async with Producers(msgspec.json.decode(sys.argv[1], type=Settings), LoadOf(producers=2)) as producers:
        print(*producers.pids, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_producers_die_with_the_lab(settings: Settings) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, msgspec.json.encode(settings).decode()],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with parent:
        assert parent.stdout is not None
        pids = parent.stdout.readline().split()
        assert len(pids) == 2
        parent.kill()
    await until(lambda: not any(is_alive(int(pid)) for pid in pids), what="the producers' end")


def is_alive(pid: int) -> bool:
    """Neither gone nor waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def environ_of(settings: Settings) -> dict[str, str]:
    usual = Settings()
    names = [n for n in settings.__struct_fields__ if getattr(settings, n) != getattr(usual, n)]
    return {**os.environ, **{name.upper(): str(getattr(settings, name)) for name in names}}


def command(settings: Settings, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runtime", "load", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ_of(settings),
        cwd=ROOT,
    )


async def test_the_command_tells_each_second_and_sums_up(settings: Settings) -> None:
    await prepare(settings)
    with command(settings, "--rate", "800", "--seconds", "2.5", "--samples", "5", "--json") as load:
        out, err = load.communicate(timeout=30)
    assert load.returncode == 0, err
    assert err.count("800 reports/s wanted") == 2
    summary = json.loads(out.splitlines()[-1])
    assert summary["stored"] == summary["published"] == len(await stored_in(settings))
    assert summary["stored"] == pytest.approx(2000, rel=0.25)
    assert not summary["interrupted"]


async def test_an_interrupted_command_ends_in_order_and_sums_up(settings: Settings) -> None:
    await prepare(settings)
    with command(settings, "--rate", "500", "--producers", "2") as load:
        assert load.stderr is not None
        assert "500 reports/s wanted" in load.stderr.readline()
        load.send_signal(signal.SIGINT)
        out, err = load.communicate(timeout=30)
    assert load.returncode == 130, err
    stored = await stored_in(settings)
    assert out.startswith(f"{len(stored):,} of ")


async def test_the_command_says_what_is_missing(settings: Settings, nats_server: NatsServer) -> None:
    nowhere = msgspec.structs.replace(settings, nats_servers="nats://127.0.0.1:1")
    for chosen, code, told in (
        (settings, 65, f"the stream {settings.stream_samples} does not exist: run defender init"),
        (nowhere, 69, "no NATS server answered"),
    ):
        with command(chosen, "--seconds", "1") as load:
            _, err = load.communicate(timeout=30)
        assert load.returncode == code
        assert told in err
