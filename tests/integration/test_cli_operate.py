"""Operators' commands against a real nats-server: status, ring, drain, forget, freeze, cutover, track.

The pods are stand-ins in a thread: they claim, beat, listen and own partitions as defenders do, and do
what the leader would with the key ``tracks``.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest
import uvloop
from fleet import connected
from test_cli import Cli, cli_for

from runtime import resources
from runtime.bucket import Bucket, View
from runtime.bus import Connection
from runtime.cli.cutover import future
from runtime.cli.snapshot import read_snapshot
from runtime.config import Settings
from runtime.control import Accepted, Answer, Drain, Listener, Refused, Request
from runtime.fleet_snapshot import Snapshot
from runtime.identity import Claim
from runtime.membership import Heartbeat, Load, State
from runtime.ownership_record import Record, key
from runtime.ownership_record import State as Ownership
from runtime.records import FORGET_PREFIX, Layout, Member, RingRecord, Tracks

BEAT_S = 0.1


def shortly(condition: Callable[[], bool], what: str) -> None:
    """Polls until *condition* is true; a command runs a loop of its own, so the tests have none."""
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, f"not within 15 s: {what}"
        time.sleep(0.02)


OF_A_FLEET = (
    ("status",),
    ("ring",),
    ("where", "E-1"),
    ("drain", "x"),
    ("forget", "defender-0"),
    ("freeze",),
    ("unfreeze",),
    ("cutover", "green", "--yes"),
    ("track", "canary", "--in"),
)
"""Commands that read the whole fleet first."""


class Fleet:
    """Stand-ins for pods, in a loop of their own in a thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pods: dict[str, Heartbeat] = {}
        self.orders: list[tuple[str, Request]] = []
        self.refuses = ""
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._listeners: dict[str, Listener] = {}
        self._watching: View | None = None
        self.silent: set[str] = set()
        self.connection: Connection

    def __enter__(self) -> Fleet:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()

    def does(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Runs *work* in the thread; its result."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(20)

    def bucket(self, name: str) -> Bucket:
        return Bucket(self.connection, name, random=Random(1))

    async def _run(self) -> None:
        async with connected(self.settings) as self.connection:
            await resources.ensure(self.connection, self.settings)
            leader = self.bucket(self.settings.nats_kv_leader)
            await leader.put("leader", b'{"pod_name": "stable-0", "term": 4}')
            self._ready.set()
            while not self._stop.is_set():
                for uid, beat in list(self.pods.items()):
                    if uid not in self.silent:
                        await self._beat(beat)
                await asyncio.sleep(BEAT_S)
            for listener in self._listeners.values():
                await listener.stop()
            if self._watching is not None:
                await self._watching.stop()

    async def _beat(self, beat: Heartbeat) -> None:
        await self.bucket(self.settings.nats_kv_heartbeats).put(beat.pod_uid, msgspec.json.encode(beat))

    # --- what the tests arrange -----------------------------------------------------------------

    def add(self, name: str, number: int | None, track: str = "stable", *, joins: bool = True) -> None:
        """A pod, with an ID when *number* is one."""
        stable_id = None if number is None else f"defender-{number}"
        state = State.ACTIVE if stable_id else State.STANDBY
        pod = Heartbeat(
            f"uid-{name}", name, track, "r1", state, datetime.now(UTC), stable_id, load=Load(1), warm=True
        )

        async def work() -> None:
            if stable_id:
                claim = Claim(stable_id, pod.pod_uid, name, track, "r1", datetime.now(UTC), "s", joins=joins)
                await self.bucket(self.settings.nats_kv_stable_ids).put(stable_id, msgspec.json.encode(claim))
            await self._beat(pod)
            self.pods[pod.pod_uid] = pod
            listener = Listener(
                self.connection,
                self.settings.names.pod(pod.pod_uid),
                lambda request: self._answer(pod.pod_uid, request),
            )
            await listener.start()
            self._listeners[pod.pod_uid] = listener

        self.does(work)

    def commit(self, members: dict[str, Member], version: int = 1) -> None:
        """Writes the ring, and the records of all that its holders then own."""
        self.does(lambda: self._commit(RingRecord(version, self.settings.partitions, members)))

    async def _commit(self, record: RingRecord) -> None:
        assignments = self.bucket(self.settings.nats_kv_assignments)
        await assignments.put("ring", msgspec.json.encode(record))
        layout = Layout(record)
        holders = {pod.stable_id: pod for pod in self.pods.values() if pod.stable_id}
        served: dict[str, list[int]] = {}
        for partition, owner in enumerate(layout.owners):
            pod = holders.get(owner)
            if pod is not None:
                before = Record(Ownership.RELEASED, "defender-0", "uid-stable-0", epoch=1)
                await assignments.put(key(partition), msgspec.json.encode(before))
                after = Record(Ownership.OWNED, owner or "", pod.pod_uid)
                await assignments.put(key(partition), msgspec.json.encode(after))
                served.setdefault(pod.pod_uid, []).append(partition)
        for uid, pod in self.pods.items():
            self.pods[uid] = msgspec.structs.replace(pod, partitions=served.get(uid, []))
            await self._beat(self.pods[uid])

    def obey(self) -> None:
        """From now on the leader commits what follows from the key ``tracks``, at once."""

        async def work() -> None:
            loop = asyncio.get_running_loop()
            tasks = []

            async def follow(value: bytes) -> None:
                tracks = msgspec.json.decode(value, type=Tracks)
                snapshot = await read_snapshot(self.connection, self.settings)
                record = future(snapshot, tracks, self.settings.names)
                await self._commit(msgspec.structs.replace(record, version=record.version + 1))

            self._watching = await self.bucket(self.settings.nats_kv_assignments).watch(
                lambda entry: tasks.append(loop.create_task(follow(entry.value))) if entry.value else None,
                pattern="tracks",
            )

        self.does(work)

    async def _answer(self, uid: str, request: Request) -> Answer:
        self.orders.append((uid, request))
        if self.refuses:
            return Refused(self.refuses)
        if request == Drain():
            heirs = {
                pod.stable_id: Member(pod.track)
                for pod in self.pods.values()
                if pod.stable_id and pod.pod_uid != uid
            }
            await self._commit(RingRecord(9, self.settings.partitions, heirs))
        return Accepted()

    def snapshot(self) -> Snapshot:
        """What a command reads."""
        seen: Snapshot = self.does(lambda: read_snapshot(self.connection, self.settings))
        return seen

    def key(self, name: str, bucket: str | None = None) -> bytes | None:
        """The value of a key of the assignments (or of another bucket)."""

        async def work() -> bytes | None:
            entry = await self.bucket(bucket or self.settings.nats_kv_assignments).get(name)
            return entry.value if entry else None

        value: bytes | None = self.does(work)
        return value


@pytest.fixture
def small(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, partitions=16, renew_s=0.3, silence_s=1.5, leader_ttl_s=60)


@pytest.fixture
def cli(
    small: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    yield from cli_for(small, monkeypatch, capsys)


@pytest.fixture
def fleet(small: Settings) -> Iterator[Fleet]:
    """Two stable holders that have the ring."""
    with Fleet(small) as fleet:
        fleet.add("stable-0", 0)
        fleet.add("stable-1", 1)
        fleet.commit({"defender-0": Member("stable"), "defender-1": Member("stable")})
        yield fleet


def test_status_of_a_sound_fleet_has_no_trouble_and_passes_its_check(cli: Cli, fleet: Fleet) -> None:
    (tree,) = cli.json("status")
    ours = [text for text in tree["trouble"] if "not served" not in text]
    assert ours == []
    assert tree["leader"]["pod_name"] == "stable-0"
    assert [row["partitions"] for row in tree["defenders"]] == [row["assigned"] for row in tree["defenders"]]
    assert all(row["heartbeat_age_s"] < 1.5 for row in tree["defenders"])

    shortly(lambda: cli("status", "--check")[0] == 0, "a sound fleet")
    fleet.does(lambda: fleet.bucket(fleet.settings.nats_kv_leader).change("leader", lambda _: None))
    code, out, _ = cli("status", "--check")
    assert code == 1
    assert out.startswith("nobody leads")
    assert cli("status")[0] == 0, "without --check trouble is told, and is no error"


def test_a_pod_that_falls_silent_is_named_with_its_partitions(cli: Cli, fleet: Fleet) -> None:
    fleet.silent.add("uid-stable-1")
    theirs = len(fleet.pods["uid-stable-1"].partitions)

    def noticed() -> bool:
        (tree,) = cli.json("status")
        return len(tree["unowned"]) == theirs

    shortly(noticed, "the silence")
    text = cli("status")[1]
    assert "holders that are silent: defender-1" in text
    assert f"{theirs} of 16 partitions have no live owner" in text


def test_the_ring_is_shown_and_a_change_is_planned_without_changing_anything(cli: Cli, fleet: Fleet) -> None:
    before = fleet.key("ring")
    code, out, _ = cli("ring")
    assert code == 0
    assert "version 1, 2 members, 16 partitions" in out
    (tree,) = cli.json("ring")
    assert [share["pod"] for share in tree["shares"]] == ["stable-0", "stable-1"]
    (plan,) = cli.json("ring", "--without", "defender-1")
    assert len(plan["moves"]) == tree["shares"][1]["partitions"]
    assert set(map(tuple, plan["moves"].values())) == {("defender-1", "defender-0")}
    assert cli("ring", "--with", "defender-7,defender-8")[0] == 0
    code, _, err = cli("ring", "--without", "defender-9")
    assert (code, "its members are defender-0, defender-1" in err) == (65, True)
    assert fleet.key("ring") == before


def test_drain_asks_the_pod_and_waits_until_it_has_no_partition(cli: Cli, fleet: Fleet) -> None:
    (done,) = cli.json("drain", "stable-1")
    assert done.items() >= {"pod": "stable-1", "stable_id": "defender-1", "partitions": 0}.items()
    assert fleet.orders == [("uid-stable-1", Drain())]
    assert cli("drain", "stable-1", "--undo")[:2] == (0, "stable-1 takes part again\n")
    assert fleet.orders[-1] == ("uid-stable-1", Drain(undo=True))


def test_a_drain_that_is_refused_or_unheard_says_what_to_do(cli: Cli, fleet: Fleet) -> None:
    fleet.refuses = "is drained already"
    code, _, err = cli("drain", "defender-1")
    assert (code, err) == (75, "defender: defender-1 (stable-1) refuses: is drained already\n")
    fleet.does(fleet._listeners["uid-stable-1"].stop)
    code, _, err = cli("drain", "defender-1")
    assert code == 75
    assert "If it is dead: defender forget defender-1" in err
    assert cli("drain", "stable-7")[0] == 65


def test_a_drain_that_takes_too_long_names_what_is_left(cli: Cli, fleet: Fleet) -> None:
    fleet.add("idle", None)

    async def never(uid: str, request: Request) -> Answer:
        return Accepted()

    fleet._answer = never  # type: ignore[method-assign]
    code, _, err = cli("drain", "defender-0", "--timeout", "1")
    assert code == 75
    count = len(fleet.pods["uid-stable-0"].partitions)
    assert f"after 1 s {count} partitions left" in err
    code, out, _ = cli("drain", "defender-0", "--no-wait")
    assert (code, out) == (0, f"stable-0 drains; it has {count} partitions\n")


def test_a_living_holder_is_forgotten_only_by_force(cli: Cli, fleet: Fleet) -> None:
    code, _, err = cli("forget", "defender-1")
    assert code == 75
    assert "defender drain defender-1 hands it over" in err
    assert fleet.key(f"{FORGET_PREFIX}defender-1") is None
    (done,) = cli.json("forget", "defender-1", "--force")
    assert done == {"stable_id": "defender-1", "pod": "stable-1", "claim_deleted": True}
    assert fleet.key("defender-1", fleet.settings.nats_kv_stable_ids) is None
    assert fleet.key(f"{FORGET_PREFIX}defender-1") is not None
    assert fleet.snapshot().forget == {"defender-1"}
    bucket = fleet.bucket(fleet.settings.nats_kv_assignments)
    fleet.does(lambda: bucket.change(f"{FORGET_PREFIX}defender-1", lambda _: None))
    assert fleet.snapshot().forget == frozenset(), "the leader deletes the key when it has obeyed"


def test_a_silent_holder_loses_its_claim_and_a_vacancy_needs_none(cli: Cli, fleet: Fleet) -> None:
    fleet.silent.add("uid-stable-1")
    shortly(lambda: cli("forget", "defender-1")[0] == 0, "silent")
    assert fleet.key("defender-1", fleet.settings.nats_kv_stable_ids) is None
    (done,) = cli.json("forget", "defender-1")
    assert (done["pod"], done["claim_deleted"]) == (None, False)
    code, _, err = cli("forget", "defender-55")
    assert (code, "neither held nor in the ring" in err) == (65, True)


def test_freezing_keeps_the_first_word_and_unfreezing_says_whose_it_was(cli: Cli, fleet: Fleet) -> None:
    (done,) = cli.json("freeze", "--reason", "new switches")
    assert done["changed"]
    assert "was frozen already" in cli("freeze", "--reason", "another")[1]
    stored = fleet.key("frozen")
    assert stored is not None
    assert json.loads(stored)["reason"] == "new switches"
    assert "new switches" in cli("status")[1]
    assert "had frozen it: new switches" in cli("unfreeze")[1]
    assert fleet.key("frozen") is None
    assert cli("unfreeze")[:2] == (0, "the ring was not frozen\n")


def test_a_cutover_shows_its_plan_waits_for_every_partition_and_goes_back(cli: Cli, fleet: Fleet) -> None:
    code, _, err = cli("cutover", "green", "--yes")
    assert code == 75
    assert "no living defender of track green" in err
    for n in (0, 1):
        fleet.add(f"green-{n}", 30 + n, "green", joins=False)
    assert "add --yes" in cli("cutover", "green")[2], "nobody can be asked here"
    assert fleet.key("tracks") is None
    fleet.obey()
    code, out, err = cli("cutover", "green", "--yes")
    assert code == 0, err
    assert out.startswith("track green has all 16 partitions after")
    assert "between owners" in out
    assert "moves    16 partitions" in err
    (tree,) = cli.json("status")
    assert tree["ring"]["members"] == ["defender-30", "defender-31"]
    (done,) = cli.json("cutover", "stable", "--yes")
    assert (done["joins"], done["moves"]) == (["defender-0", "defender-1"], 16)
    # Fewer where a release was overwritten by the next owner before it was delivered: the bucket keeps one.
    assert 0 < len(done["gaps_ms"]) <= 16
    stored = fleet.key("tracks")
    assert stored is not None
    assert json.loads(stored) == {"in_ring": {"green": False, "stable": True}}


def test_a_cutover_that_nobody_commits_ends_with_what_may_hold_it_up(cli: Cli, fleet: Fleet) -> None:
    fleet.add("green-0", 30, "green", joins=False)
    code, _, err = cli("cutover", "green", "--yes", "--force", "--timeout", "1")
    assert code == 75
    assert "the leader has not committed the ring yet" in err
    code, out, _ = cli("cutover", "green", "--yes", "--force", "--no-wait")
    assert (code, out) == (0, "track green is to have the ring; defender status tells how far it is\n")


def test_a_canary_gets_the_partitions_of_its_chambers_and_is_told_who_goes_along(
    cli: Cli, fleet: Fleet
) -> None:
    names = fleet.settings.names
    partition = names.partition_of("E-1")
    along = next(f"E-{n}" for n in range(2, 999) if names.partition_of(f"E-{n}") == partition)
    fleet.does(lambda: fleet.connection.store(names.verdict(partition, along), b"x"))
    code, out, _ = cli("track", "canary", "--chambers", "E-1")
    assert code == 0
    assert f"  {partition}: E-1; with it go {along}" in out
    assert "no living defender of track canary holds an ID yet" in out
    stored = fleet.key("tracks")
    assert stored is not None
    assert json.loads(stored) == {"chambers": {"canary": ["E-1"]}}
    assert "canary: only the chambers E-1" in cli("status")[1]
    code, _, err = cli("track", "green", "--chambers", along)
    assert (code, "goes to track canary" in err) == (65, True)
    assert "nothing changes" in cli("track", "canary", "--chambers", "E-1")[1]
    cli("track", "canary", "--in")
    (done,) = cli.json("track", "canary", "--clear")
    assert done["tracks"] == {"in_ring": {"canary": True}}
    assert cli("track", "canary", "--auto")[0] == 0
    assert fleet.key("tracks") is None


@pytest.mark.parametrize(
    "options", [(), ("--in", "--out"), ("--chambers", ""), ("--chambers", "no such"), ("--clear", "--auto")]
)
def test_a_track_is_told_one_sensible_thing(cli: Cli, fleet: Fleet, options: tuple[str, ...]) -> None:
    assert cli("track", "canary", *options)[0] == 65
    assert fleet.key("tracks") is None


def test_commands_of_a_fleet_of_other_partitions_name_the_setting(
    cli: Cli, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in ("32", "128"):  # above 64 the streams have other names too
        monkeypatch.setenv("PARTITIONS", given)
        told = (
            f"PARTITIONS: this command was given {given}, the fleet's ring has 16: run it with PARTITIONS=16;"
        )
        for command in (*OF_A_FLEET, ("drain", "stable-0")):
            code, _, err = cli(*command)
            assert (code, told in err) == (64, True), (command, err)


def test_without_the_fleet_s_buckets_every_command_says_what_may_be_so_and_what_to_do(cli: Cli) -> None:
    bucket = cli.settings.nats_kv_stable_ids
    for command in OF_A_FLEET:
        code, _, err = cli(*command)
        assert code == 65, (command, err)
        assert f"the bucket {bucket} does not exist. If it was never created, no defender" in err
        assert "correct NATS_SERVERS or NATS_KV_STABLE_IDS. If it was deleted: restart a defender" in err


@pytest.mark.parametrize(
    "name", ["nats_kv_heartbeats", "nats_kv_assignments", "nats_kv_leader", "stream_samples"]
)
def test_what_was_deleted_is_named_with_its_setting(cli: Cli, fleet: Fleet, name: str) -> None:
    stored = getattr(cli.settings, name)
    stream = stored if name.startswith("stream") else f"KV_{stored}"
    fleet.does(lambda: fleet.connection.api(f"STREAM.DELETE.{stream}"))
    code, _, err = cli("status")
    assert (code, f"{stored} does not exist" in err, name.upper() in err) == (65, True, True), err
    assert "no JetStream" not in err
