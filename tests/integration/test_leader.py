"""Election and leading on a real server: one leader, quick handover, commits and depositions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest
from fleet import connected, settings_for, until

from runtime.bucket import Bucket
from runtime.bus import TRANSIENT, Connection
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.fleet_view import FleetView
from runtime.identity import Claim
from runtime.leader import Lead, Leader
from runtime.membership import Heart, Heartbeat, State
from runtime.policy import Commit, Order, Policy, Situation
from runtime.records import Frozen, RingRecord
from runtime.resources import ensure

FAST: dict[str, Any] = {
    "partitions": 8,
    "leader_ttl_s": 2.0,
    "lease_ttl_s": 2.0,
    "renew_s": 0.2,
    "silence_s": 1.5,
    "settle_s": 0.1,
    "hold_down_s": 0.3,
    "request_timeout_s": 0.5,
}


class Clock:
    """The monotonic clock, of a machine that can sleep for a while."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.slept_s


class Pod:
    """What of a supervisor leads: a view, a heart, a leader; and a claim that tests write."""

    def __init__(self, connection: Connection, settings: Settings, name: str, **options: Any) -> None:
        self.settings = msgspec.structs.replace(settings, pod_name=name, pod_uid=f"uid-{name}")
        self.connection = connection
        self.clock = Clock()
        random = Random(name)
        self.view = FleetView(connection, self.settings, random=random, clock=self.clock)
        self.heart = Heart(self.bucket(settings.nats_kv_heartbeats), self._beat, every_s=settings.renew_s)
        self.leader = Leader(
            connection,
            self.settings,
            self.view,
            session=f"session-{name}",
            random=random,
            clock=self.clock,
            **options,
        )

    def bucket(self, name: str) -> Bucket:
        return Bucket(self.connection, name, random=Random(1), timeout_s=self.settings.request_timeout_s)

    @property
    def assignments(self) -> Bucket:
        return self.bucket(self.settings.nats_kv_assignments)

    @property
    def leads(self) -> bool:
        return self.leader.leading

    @property
    def ring(self) -> RingRecord | None:
        return self.view.ring.value if self.view.ring is not None else None

    @property
    def members(self) -> list[str]:
        return sorted(self.ring.members) if self.ring is not None else []

    async def claim(self, *numbers: int, pod: str = "") -> None:
        """Claims of *pod*, a pod for each of them by default. Nobody renews them."""
        for number in numbers:
            name = f"defender-{number}"
            uid = pod or f"uid-{number}"
            claim = Claim(name, uid, f"pod-{number}", "stable", "r1", datetime.now(UTC), "s")
            await self.bucket(self.settings.nats_kv_stable_ids).put(name, msgspec.json.encode(claim))

    def _beat(self) -> Heartbeat:
        s = self.settings
        return Heartbeat(s.pod_uid, s.pod_name, s.track, s.revision, State.ACTIVE, datetime.now(UTC))


@asynccontextmanager
async def started(settings: Settings, name: str, **options: Any) -> AsyncIterator[Pod]:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        pod = Pod(connection, settings, name, **options)
        await pod.view.start()
        pod.heart.begin()
        pod.leader.begin()
        try:
            yield pod
        finally:
            await pod.leader.resign()
            await pod.heart.stop()
            await pod.view.stop()


@asynccontextmanager
async def renewed(pod: Pod, *numbers: int) -> AsyncIterator[None]:
    """Holders that live: their claims are renewed all the time, over outages too."""

    async def renew() -> None:
        while True:
            with suppress(*TRANSIENT):
                await pod.claim(*numbers)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()


async def test_one_of_two_leads_and_the_key_names_it_and_its_term(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, **FAST)
    async with started(settings, "a") as a, started(settings, "b") as b:
        await until(lambda: a.leads or b.leads)
        leader, other = (a, b) if a.leads else (b, a)

        def told() -> Lead | None:
            seen = other.view.leader
            lead = msgspec.json.decode(seen.value, type=Lead) if seen is not None else None
            return lead if lead is not None and lead.term else None

        lead = await until(told)
        assert (lead.pod_uid, lead.term) == (leader.settings.pod_uid, leader.leader.term)
        assert lead.session == f"session-{leader.settings.pod_name}"
        end_s = time.monotonic() + 2.5  # Longer than the key's life: it is renewed.
        await until(lambda: time.monotonic() > end_s or other.leads or not leader.leads)
        assert (leader.leads, other.leads) == (True, False)
        assert (leader.leader.elections, other.leader.elections) == (1, 0)
        assert other.leader.term == 0


async def test_a_leader_that_resigns_hands_over_within_half_a_second(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, **{**FAST, "leader_ttl_s": 60.0})
    took_s = []
    for _ in range(3):  # The machine may be busy with other things once.
        async with started(settings, "a") as a:
            await until(lambda a=a: a.leads)
            async with started(settings, "b") as b:
                before, started_s = a.leader.term, time.monotonic()
                await a.leader.resign()
                assert not a.leads
                await until(lambda b=b: b.leads)
                took_s.append(time.monotonic() - started_s)
                assert b.leader.term > before
    assert min(took_s) < 0.5


async def test_who_resigned_can_stand_again(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, **FAST)
    async with started(settings, "a") as a:
        await until(lambda: a.leads)
        await a.leader.resign()
        a.leader.begin()
        a.leader.begin()  # Without effect: else one of the two would not end below.
        await until(lambda: a.leads)
        await a.leader.resign()
        end_s = time.monotonic() + 0.6
        await until(lambda: a.leads or time.monotonic() > end_s)
        assert (a.leads, a.leader.elections) == (False, 2)


async def test_a_leader_that_may_not_lead_any_more_hands_over(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, **FAST)
    draining: list[bool] = []
    async with started(settings, "a", eligible=lambda: not draining) as a:
        await until(lambda: a.leads)
        async with started(settings, "b") as b:
            draining.append(True)
            await until(lambda: b.leads, deadline_s=1.5)
            assert not a.leads


async def test_when_the_leader_is_cut_off_another_takes_over_and_never_do_two_lead(
    nats_server: NatsServer,
) -> None:
    settings = settings_for(nats_server, **FAST)
    async with started(settings, "a") as a:
        await until(lambda: a.leads)
        async with started(settings, "b") as b:
            await a.connection.cut()

            def taken_over() -> bool:
                assert not (a.leads and b.leads)
                return b.leads

            await until(taken_over, deadline_s=5)
            assert not a.leads


async def test_joins_and_leaves_become_versions_of_the_ring(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, **FAST)
    async with started(settings, "a") as a, renewed(a, 0, 1):
        await until(lambda: a.members == ["defender-0", "defender-1"])
        assert a.ring is not None
        assert (a.ring.version, a.ring.leader, a.ring.partitions) == (1, "a", 8)
        assert a.ring.committed_at is not None
        async with renewed(a, 2, 3):
            await until(lambda: len(a.members) == 4)
            assert a.ring.version == 2
        # 2 and 3 fall silent together, but are half of all: they only go when their claims have expired.
        await until(lambda: a.leader.leadership.mass_loss)
        assert "mass loss" in a.leader.leadership.remarks[0]
        await until(lambda: a.members == ["defender-0", "defender-1"])
        await until(lambda: a.leader.commits == 3)
        assert (a.ring.version, a.leader.deposed) == (3, 0)


async def test_a_silent_holder_is_deposed_and_one_that_only_renews_its_claim_is_not(
    nats_server: NatsServer,
) -> None:
    settings = settings_for(nats_server, **{**FAST, "lease_ttl_s": 60.0})
    async with started(settings, "a") as a, renewed(a, 0, 1):
        await a.claim(2)
        await until(lambda: len(a.members) == 3)
        await until(lambda: "defender-2" not in a.view.claims)
        await until(lambda: a.leader.deposed == 1)
        await until(lambda: a.members == ["defender-0", "defender-1"])
        assert a.leader.deposed == 1


async def test_a_silent_holder_is_not_deposed_while_the_leaders_own_heartbeat_was_missing_too(
    nats_server: NatsServer,
) -> None:
    times = {"renew_s": 1.0, "silence_s": 2.0, "leader_ttl_s": 8.0, "lease_ttl_s": 60.0}
    settings = settings_for(nats_server, **{**FAST, **times})
    async with started(settings, "a") as a, renewed(a, 0, 1):
        await until(lambda: len(a.members) == 2)
        assert a.heart._task is not None
        a.heart._task.cancel()
        await a.heart.beat_now()
        await a.claim(2)
        await until(lambda: any("of our own was missing" in one for one in a.leader.leadership.remarks))
        assert a.leader.deposed == 0
        a.heart.begin()
        await until(lambda: a.leader.deposed == 1)
        assert a.leader.leadership.aftermath_s == 0


async def test_a_freeze_holds_until_it_is_lifted(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, **FAST)
    async with started(settings, "a") as a, renewed(a, 0):
        await until(lambda: a.members)
        await a.assignments.put("frozen", msgspec.json.encode(Frozen("ann", datetime.now(UTC), "inventory")))
        await until(lambda: a.leader.leadership.remarks)
        assert "ann: inventory" in a.leader.leadership.remarks[0]
        async with renewed(a, 1):
            await until(lambda: "defender-1" in a.view.claims)
            end_s = time.monotonic() + 0.5
            await until(lambda: time.monotonic() > end_s)
            assert a.members == ["defender-0"]
            await a.assignments.change("frozen", lambda _: None)
            await until(lambda: len(a.members) == 2)


@pytest.mark.parametrize("loss", ["deleted", "overwritten"])
async def test_a_ring_that_was_deleted_or_overwritten_is_written_again(
    nats_server: NatsServer, loss: str
) -> None:
    settings = settings_for(nats_server, **FAST)
    async with started(settings, "a") as a, renewed(a, 0, 1):
        await until(lambda: len(a.members) == 2)
        if loss == "deleted":
            await a.assignments.change("ring", lambda _: None)
        else:
            await a.assignments.put("ring", b"{nonsense")
        await until(lambda: a.ring is not None and a.ring.version == 2)
        entry = await a.assignments.get("ring")
        assert entry is not None
        assert entry.value is not None
        assert sorted(msgspec.json.decode(entry.value, type=RingRecord).members) == [
            "defender-0",
            "defender-1",
        ]


async def test_a_word_to_forget_is_obeyed_and_taken_away(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, **{**FAST, "hold_down_s": 60.0, "lease_ttl_s": 60.0})
    async with started(settings, "a") as a, renewed(a, 0, 1):
        await a.claim(2)
        await until(lambda: len(a.members) == 3)
        await a.bucket(settings.nats_kv_stable_ids).change("defender-2", lambda _: None)
        await a.assignments.put("forget.defender-2", b"{}")
        await until(lambda: len(a.members) == 2)
        await until(lambda: not a.view.forget)


async def test_a_leader_that_was_paused_in_the_midst_of_a_decision_does_not_carry_it_out(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(nats_server, **FAST)
    pods: list[Pod] = []
    rings: list[RingRecord | None] = []

    class Slow(Policy):
        """The first commit is decided just before the machine sleeps for a minute."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            rings.extend(pod.ring for pod in pods)

        def step(self, seen: Situation) -> list[Order]:
            orders = super().step(seen)
            if any(isinstance(order, Commit) for order in orders) and not pods[0].clock.slept_s:
                pods[0].clock.slept_s = 60.0
            return orders

    monkeypatch.setattr("runtime.leader.Policy", Slow)
    async with started(settings, "a") as a:
        pods.append(a)
        await until(lambda: a.leader.elections == 1 and a.leads)
        async with renewed(a, 0):
            await until(lambda: a.leader.elections == 2)
            assert rings[-1] is None
            assert a.leader.commits == 0
            await until(lambda: a.members)


async def test_a_leader_whose_key_another_overwrote_stops_and_leads_again_when_it_has_expired(
    nats_server: NatsServer,
) -> None:
    settings = settings_for(nats_server, **FAST)
    async with started(settings, "a") as a:
        await until(lambda: a.leads)
        await a.bucket(settings.nats_kv_leader).put("leader", b"by hand")
        await until(lambda: not a.leads, deadline_s=1)
        await until(lambda: a.leads, deadline_s=5)
        assert a.leader.elections == 2


async def test_an_election_whose_answer_never_came_is_won_at_once(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, **{**FAST, "leader_ttl_s": 60.0})
    async with connected(settings) as connection:
        await ensure(connection, settings)
        own = Lead("uid-a", "a", "session-a", datetime.now(UTC))
        bucket = Bucket(connection, settings.nats_kv_leader, random=Random(1))
        await bucket.create("leader", msgspec.json.encode(own))
        async with started(settings, "a") as a:
            await until(lambda: a.leads, deadline_s=2)


async def test_a_pod_with_other_partitions_does_not_lead(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, **FAST)
    async with started(settings, "a") as a, renewed(a, 0):
        await until(lambda: a.members)
        wrong = msgspec.structs.replace(settings, partitions=16)
        async with connected(settings) as connection:
            b = Pod(connection, wrong, "b")
            await b.view.start()
            b.leader.begin()
            await a.leader.resign()
            end_s = time.monotonic() + 1.0
            await until(lambda: time.monotonic() > end_s)
            assert not b.leads
            assert b.view.leader is None
            await b.leader.resign()
            await b.view.stop()


async def test_a_policy_that_breaks_gives_another_pod_its_turn(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(nats_server, **FAST)
    async with started(settings, "a") as a:
        await until(lambda: a.leads)
        async with started(settings, "b") as b:

            def broken(_: Any) -> None:
                raise ZeroDivisionError("a fault of ours")

            monkeypatch.setattr(a.leader._policy, "step", broken)
            await until(lambda: b.leads, deadline_s=1.5)
            assert not a.leads


async def test_after_an_outage_the_leader_is_back_and_declares_nobody_dead(own_server: NatsServer) -> None:
    settings = settings_for(own_server, **{**FAST, "lease_ttl_s": 20.0})
    async with started(settings, "a") as a:
        await a.claim(0, 1)
        async with renewed(a, 0, 1):
            await until(lambda: len(a.members) == 2)
            own_server.kill()
            await until(lambda: a.leader.leadership.outage)
            await until(lambda: not a.leads, deadline_s=5)
            own_server.start()
            await until(lambda: a.leads and not a.leader.leadership.outage, deadline_s=15)
            assert a.leader.leadership.aftermath_s > 10
        # Now 0 and 1 are silent, which would be a mass loss; 2 lives, 3 is alone in its silence.
        await a.claim(3)
        async with renewed(a, 0, 1, 2):
            await until(lambda: any("after an outage" in one for one in a.leader.leadership.remarks))
            await until(lambda: len(a.members) == 4)
            assert a.leader.deposed == 0
