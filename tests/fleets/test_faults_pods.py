"""Faults of pods: paused, killed at the worst moment, with clocks that jump. Each report is judged once."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from fleet import until

from bench.lab.pods import Pod
from runtime.embedded import NatsServer
from runtime.membership import Heartbeat
from tests.fleets.troubled import REVISION, Troubled, troubled, troubled_settings

CLOCK_SOURCE = Path(__file__).with_name("clock_shift.c")
HOUR_S = 3600


class Clock:
    """The wall clock of the pods that are started under `preloaded`: off by what `jump` says."""

    def __init__(self, folder: Path) -> None:
        self._file, self._library = folder / "shift", folder / "clock_shift.so"
        self.jump(0)
        compile_it = ["cc", "-O1", "-shared", "-fPIC", "-o", str(self._library), str(CLOCK_SOURCE)]
        subprocess.run(compile_it, check=True)

    @property
    def environ(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "CLOCK_SHIFT_FILE": str(self._file)}

    def jump(self, seconds: int) -> None:
        """From now on off by *seconds*."""
        with open(self._file, "r+b" if self._file.exists() else "w+b") as file:  # in place: it is mapped
            file.write(struct.pack("l", seconds))


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    return Clock(tmp_path)


async def test_clocks_jump(own_server: NatsServer, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader's clock and a follower's jump an hour to and fro: nothing changes hands, it leads on."""
    async with troubled(troubled_settings(own_server), members=1) as fleet:
        for name, value in clock.environ.items():
            monkeypatch.setenv(name, value)
        jumping = fleet.fleet.deployment(replicas=2, revision=REVISION)
        await jumping.start()
        monkeypatch.undo()
        await fleet.steady(3)
        fleet.pods[0].sigterm()  # one of the other two leads now
        fleet.deployment.pods.clear()
        await fleet.pods[0].wait_exit()
        await fleet.steady(2)
        leader = await fleet.leader()
        begin_ns, holders = time.time_ns(), fleet.holders
        for hours in (1, -1, 0):
            async with fleet.fleet.event(f"clocks {hours:+} h"):
                clock.jump(hours * HOUR_S)
                await until(
                    lambda hours=hours: _off_by(fleet, leader, hours * HOUR_S), what="the clock is off"
                )
                await fleet.more(300)
                await fleet.steady(2)
        assert fleet.holders == holders
        assert not fleet.moved_since(begin_ns)
        assert await fleet.leader() is leader
        assert all(pod.exit_code is None for pod in jumping.pods)


async def _off_by(fleet: Troubled, pod: Pod, seconds: int) -> bool:
    entry = await fleet.bucket(fleet.settings.nats_kv_heartbeats).get(pod.settings.pod_uid)
    assert entry is not None
    assert entry.value is not None
    at = msgspec.json.decode(entry.value, type=Heartbeat).at.timestamp()
    return abs(at - time.time() - seconds) < 30


async def test_a_pause_shorter_than_the_silence(own_server: NatsServer) -> None:
    """A pod that is stopped for half of SILENCE_S keeps its ID and its partitions."""
    async with troubled(troubled_settings(own_server), standbys=1) as fleet:
        begin_ns, holders = time.time_ns(), fleet.holders
        for pod in (await fleet.leader(), (await fleet.followers())[0]):
            async with fleet.fleet.event("stopped for 1.5 s"):
                pod.freeze()
                await asyncio.sleep(1.5)
                pod.thaw()
                await fleet.more()
        await fleet.steady(3)
        assert fleet.holders == holders
        assert not fleet.moved_since(begin_ns)


async def test_a_pause_longer_than_the_silence(own_server: NatsServer) -> None:
    """A pod that is stopped until a standby has its ID wakes, does no harm, and leaves with 76."""
    async with troubled(troubled_settings(own_server), standbys=1) as fleet:
        (standby,), pod = fleet.standbys, (await fleet.followers())[0]
        stable_id, partitions = fleet.id_of(pod), fleet.owned_by(pod)
        async with fleet.fleet.event("stopped until deposed"):
            pod.freeze()
            await until(lambda: set(partitions) & set(fleet.owned_by(standby)), deadline_s=8.0)
            pod.thaw()
            cause = await fleet.fenced(pod)
            await fleet.steady(3)
            await fleet.more()
        assert fleet.id_of(standby) == stable_id
        assert "the claim was" in cause
        await fleet.reborn(pod)
        assert fleet.standbys == [pod]


async def test_a_pause_longer_than_the_lease(own_server: NatsServer) -> None:
    """A leader that is stopped for longer than its lease wakes to find it over, and leaves with 76."""
    settings = troubled_settings(own_server, leader_ttl_s=3.0, lease_ttl_s=9.0, lease_held_s=6.0)
    async with troubled(settings, standbys=1) as fleet:
        (standby,), pod = fleet.standbys, await fleet.leader()
        stable_id, begin_s = fleet.id_of(pod), time.monotonic()
        async with fleet.fleet.event("the leader stopped for longer than its lease"):
            pod.freeze()
            await until(lambda: fleet.id_of(standby) == stable_id, deadline_s=20.0)
            await fleet.more()
            await asyncio.sleep(max(0.0, settings.lease_ttl_s + 0.5 - (time.monotonic() - begin_s)))
            pod.thaw()
            await fleet.fenced(pod)
            await fleet.steady(3)
            await fleet.more()
        await fleet.reborn(pod)
        assert fleet.standbys == [pod]


async def test_half_of_the_fleet_is_silent(own_server: NatsServer) -> None:
    """Two of four are stopped: the leader freezes the ring and says so until they are back."""
    async with troubled(troubled_settings(own_server), members=4, rate=200) as fleet:
        begin_ns, holders = time.time_ns(), fleet.holders
        leader, stopped = await fleet.leader(), (await fleet.followers())[:2]
        rings = len(fleet.observer.rings)
        async with fleet.fleet.event("half of the fleet stopped"):
            for pod in stopped:
                pod.freeze()
            await fleet.told("too many holders are silent at once", deadline_s=7.0)
            for pod in stopped:
                pod.thaw()
            await fleet.well()
            await fleet.more()
        assert any("mass loss" in line["why"] for line in leader.lines("the ring is left as it is"))
        await fleet.steady(4)
        assert fleet.holders == holders
        assert not fleet.moved_since(begin_ns)
        assert len(fleet.observer.rings) == rings
        assert all(pod.exit_code is None for pod in fleet.pods)


async def test_a_supervisor_alone_is_killed(own_server: NatsServer) -> None:
    """Its container starts again in its pod: the same ID, the same partitions, and nobody else is touched."""
    async with troubled(troubled_settings(own_server), standbys=1) as fleet:
        begin_ns, holders, standby = time.time_ns(), fleet.holders, fleet.standbys
        for pod in (await fleet.leader(), (await fleet.followers())[0]):
            async with fleet.fleet.event("a supervisor killed"):
                await fleet.deployment.restart(pod)
                await pod.wait_serving()
                await fleet.more()
        assert fleet.holders == holders
        assert not fleet.moved_since(begin_ns)
        assert fleet.standbys == standby


async def test_a_pod_is_killed_while_it_hands_over(own_server: NatsServer) -> None:
    """After SIGTERM, with one partition handed over, it is killed: its successor takes the rest."""
    async with troubled(troubled_settings(own_server), standbys=1) as fleet:
        (successor,), pod = fleet.standbys, (await fleet.followers())[0]
        stable_id = fleet.id_of(pod)
        async with fleet.fleet.event("killed while it hands over"):
            pod.sigterm()
            await until(lambda: fleet.owned_by(successor), deadline_s=8.0, what="the first has moved")
            pod.kill()
            left = fleet.owned_by(pod)
            await fleet.steady(3)
            await fleet.more()
        print(f"{len(left)} partitions were not handed over")
        assert fleet.id_of(successor) == stable_id


async def test_a_successor_is_killed_while_it_takes_over(own_server: NatsServer) -> None:
    """With one partition taken over it is killed: another standby gets the ID and all the rest."""
    async with troubled(troubled_settings(own_server), standbys=2, rate=200) as fleet:
        standbys, pod = fleet.standbys, (await fleet.followers())[0]
        stable_id = fleet.id_of(pod)
        async with fleet.fleet.event("killed while it takes over"):
            pod.sigterm()
            await until(
                lambda: any(map(fleet.owned_by, standbys)), deadline_s=8.0, what="the first has moved"
            )
            (successor,) = [one for one in standbys if fleet.owned_by(one)]
            successor.kill()
            standbys.remove(successor)
            await fleet.steady(3)
            await fleet.more()
            assert await pod.wait_exit() == 0
        assert fleet.id_of(standbys[0]) == stable_id


async def test_the_leader_dies_in_the_middle_of_a_commit(own_server: NatsServer) -> None:
    """Killed as a joiner claims, as the joins settle, and as the ring is written: another leads on."""
    settings = troubled_settings(own_server, id_range="0-5", leader_ttl_s=3.0)
    async with troubled(settings, members=2, rate=200) as fleet:
        for members, moment in ((3, "claimed"), (4, "settles"), (5, "written")):
            async with fleet.fleet.event(f"the leader dies, {moment}"):
                leader, rings = await fleet.leader(), len(fleet.observer.rings)
                joining = asyncio.create_task(fleet.deployment.scale(members))
                await until(lambda members=members: len(fleet.holders) == members, deadline_s=20.0)
                if moment == "settles":
                    await asyncio.sleep(0.9 * settings.settle_s)
                elif moment == "written":
                    await until(lambda rings=rings: len(fleet.observer.rings) > rings)
                leader.kill()
                leader.start()
                await joining
                await fleet.steady(members)
        versions = [ring.version for _, ring in fleet.observer.rings]
        assert versions == sorted(set(versions))
        assert fleet.observer.ring is not None
        assert fleet.observer.ring.members.keys() == fleet.holders.keys()
