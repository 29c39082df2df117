"""Each defender that the lab breaks visibly does what it must not; a break that breaks nothing is told."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from types import ModuleType

import msgspec
import pytest
from fleet import settings_for

from bench.lab import broken
from bench.lab.errors import LabError
from bench.lab.pods import Pod, another, brisk
from bench.lab.waiting import until
from runtime.bucket import Bucket, Entry
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.ownership import decode_records
from runtime.wire import Verdict, decode_verdict
from tests.load import Fleet, fleet
from tests.oracle import Streams

RATE = 300
TAKEN_S_MAX = 20.0


def broken_pod(mode: str, settings: Settings, name: str) -> Pod:
    """A pod of the fleet, to be started, that is broken by *mode*."""
    return Pod(another(settings, name), argv=broken.argv(mode))


def uid_of(entry: Entry) -> str:
    """Whose claim it is; empty for a deletion."""
    return str(msgspec.json.decode(entry.value)["pod_uid"]) if entry.value is not None else ""


async def serves_all(outside: Fleet, uid: str) -> bool:
    """Whether the pod owns every partition, by the records."""
    settings = outside.settings
    bucket = Bucket(outside.connection, settings.nats_kv_assignments, random=random.Random())
    records = decode_records(await bucket.entries("partition.*"))
    return [record.pod_uid for record, _ in records.values()] == [uid] * settings.partitions


def unjudged(streams: Streams) -> int:
    """Reports that have neither verdict nor rejection."""
    settled = {decode_verdict(verdict.payload).seq for verdict in streams.verdicts}
    settled |= {int(rejected.headers["Tfdc-Seq"]) for rejected in streams.rejected}
    return len({sample.seq for sample in streams.samples} - settled)


def stale(verdicts: list[Verdict], partition_of: dict[str, int]) -> int:
    """Verdicts of an epoch that were stored after one of a newer epoch of the partition."""
    newest: Counter[int] = Counter()
    count = 0
    for verdict in verdicts:
        partition = partition_of[verdict.chamber]
        count += verdict.epoch < newest[partition]
        newest[partition] = max(newest[partition], verdict.epoch)
    return count


async def test_put_heartbeat_lets_two_pods_hold_one_id(own_server: NatsServer) -> None:
    """A pod that was stopped until another had its ID takes it back on waking, and the other again."""
    settings = settings_for(own_server, **brisk(lease_ttl_s=16.0, lease_held_s=12.0, heartbeat_ttl_s=8.0))
    async with fleet(settings) as outside:
        with broken_pod("put-heartbeat", settings, "first") as first:
            await first.wait_serving()
            bucket = Bucket(outside.connection, settings.nats_kv_stable_ids, random=random.Random())
            holders: list[str] = []
            view = await bucket.watch(lambda entry: holders.append(uid_of(entry)), pattern="defender-0")
            with broken_pod("put-heartbeat", settings, "second") as second:
                await second.wait_ready()
                first.freeze()
                await until(lambda: holders[-1] == "uid-second", deadline_s=TAKEN_S_MAX, what="it is taken")
                first.thaw()
                begun = len(holders)

                def turns() -> list[str]:
                    """Who held it since, each stretch once; nobody gave it back in between."""
                    since = holders[begun - 1 :]
                    return [uid for i, uid in enumerate(since) if i == 0 or since[i - 1] != uid]

                await until(lambda: len(turns()) >= 5, what=lambda: f"they take turns: {turns()}")
                print(f"holders by turns: {turns()}")
                assert turns()[:5] == ["uid-second", "uid-first"] * 2 + ["uid-second"]
                assert (first.exit_code, second.exit_code) == (None, None)
            await view.stop()


async def test_no_fencing_publishes_what_is_anothers(own_server: NatsServer) -> None:
    """A pod that was stopped past its lease wakes and judges what it had in hand, as another has done."""
    settings = settings_for(own_server, **brisk())
    async with fleet(settings) as outside:
        with (
            broken_pod("no-fencing", settings, "first") as first,
            broken_pod("no-fencing", settings, "second") as second,
        ):
            await until(
                lambda: first.is_serving() or second.is_serving(), deadline_s=TAKEN_S_MAX, what="one serves"
            )
            zombie, other = (first, second) if first.is_serving() else (second, first)
            await other.wait_ready()
            load = outside.publisher(seed=1, rate=RATE)
            load.begin()
            await load.more(RATE)
            zombie.freeze()
            uid = other.settings.pod_uid
            await until(partial(serves_all, outside, uid), deadline_s=TAKEN_S_MAX, what="all is taken over")
            await load.more(RATE)
            zombie.thaw()
            await until(lambda: zombie.said("goes on, though fenced"), what="it goes on")
            await load.more(RATE)
            await load.finish()
            await outside.settled()
            streams = await outside.read()
            assert (zombie.exit_code, other.exit_code) == (None, None)
    verdicts = [decode_verdict(stored.payload) for stored in streams.verdicts]
    doubled = len(verdicts) - len({verdict.seq for verdict in verdicts})
    partition_of = {sample.chamber: sample.partition for sample in streams.samples}
    old = stale(verdicts, partition_of)
    print(f"{len(streams.samples)} reports, {len(verdicts)} verdicts, {doubled} doubled, {old} stale")
    assert doubled > 0
    assert old > 0
    assert not unjudged(streams)


async def test_ack_early_loses_what_a_crash_finds_in_hand(own_server: NatsServer) -> None:
    """Each SIGKILL of a worker under load leaves reports that are acknowledged and never judged."""
    settings = settings_for(own_server, **brisk(workers=1))
    async with fleet(settings) as outside:
        with broken_pod("ack-early", settings, "first") as pod:
            await pod.wait_serving()
            load = outside.publisher(seed=1, rate=RATE)
            load.begin()
            await load.more(RATE)
            assert not pod.lines("session ended"), "it works as long as nothing happens to it"
            pid = pod.kill_worker(0)
            await until(lambda: pod.workers[0] != pid and pod.is_serving(), what="it works again")
            await load.more(RATE)
            await load.finish()
            await outside.settled()
            pod.sigterm()  # what is acknowledged may not be stored yet; it leaves when it is
            assert await pod.wait_exit() == 0
            streams = await outside.read()
    lost = unjudged(streams)
    print(f"{len(streams.samples)} reports, {len(streams.verdicts)} verdicts, {lost} lost")
    assert 0 < lost < RATE


def test_a_mode_that_is_none_is_told() -> None:
    """With those that there are."""
    with pytest.raises(LabError, match="'nope'; there are put-heartbeat, no-fencing, ack-early"):
        broken.argv("nope")
    assert broken.main(["nope", "run"]) == LabError.exit_code
    assert broken.main(["ack-early"]) == LabError.exit_code


def test_a_product_that_has_changed_is_told() -> None:
    """A name that is gone and a parameter that is gone raise, and nothing is replaced."""
    product = ModuleType("product")
    vars(product)["renew"] = original = lambda claim: claim
    with pytest.raises(LabError, match="product has no take any more"):
        broken.replace(product, "take", lambda _: None)
    with pytest.raises(LabError, match=r"product.renew takes no revision any more"):
        broken.replace(product, "renew", lambda _: None, "claim", "revision")
    assert vars(product)["renew"] is original
    broken.replace(product, "renew", lambda before: before, "claim")
