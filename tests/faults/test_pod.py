"""A whole defender dies, freezes or leaves: the next one goes on where it was; a woken one keeps quiet."""

from __future__ import annotations

import random
import time

import msgspec
from fleet import settings_for, until

from bench.lab.pods import Pod, another, brisk, is_alive
from runtime.embedded import NatsServer
from runtime.errors import Fenced
from tests.load import Fleet, fleet
from tests.oracle import Stored

SEED = random.SystemRandom().randrange(10**6)
PATIENT = {"lease_ttl_s": 30.0, "lease_held_s": 20.0, "heartbeat_ttl_s": 30.0}


async def test_after_kill_9_of_the_supervisor_its_workers_die_and_the_same_pod_has_its_id_at_once(
    own_server: NatsServer,
) -> None:
    """The restarted container has the same POD_UID: it does not wait for the 30 s of the old claim."""
    settings = settings_for(own_server, **brisk(**PATIENT))
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            publisher = outside.publisher(seed=SEED)
            publisher.begin()
            await publisher.more(random.Random(SEED).randrange(500, 1000))
            workers = list(pod.workers.values())
            pod.kill_supervisor()
            await pod.wait_exit()
            await until(lambda: not any(map(is_alive, workers)), what="the workers die with their supervisor")
            pod.start()
            await until(lambda: pod.lines("claimed"), deadline_s=10.0, what="the ID is claimed again")
            assert pod.lines("claimed")[0]["stable_id"] == "defender-0"
            await pod.wait_serving()
            assert not pod.lines("standby")
            await publisher.more(300)
            await publisher.finish()
            await outside.audit()


async def test_a_frozen_defender_that_wakes_after_its_successor_took_over_publishes_nothing(
    own_server: NatsServer,
) -> None:
    """SIGSTOP past the lease, takeover, SIGCONT: the woken one leaves with 76 and nothing is doubled."""
    settings = settings_for(own_server, **brisk(pod_name="first"))
    async with fleet(settings) as outside:
        with Pod(settings) as first, Pod(another(settings, "second"), start=False) as second:
            await first.wait_serving()
            await second.start().wait_ready()
            publisher = outside.publisher(seed=SEED)
            publisher.begin()
            await publisher.more(random.Random(SEED).randrange(500, 1000))
            first.freeze()
            await second.wait_serving()
            await publisher.more(300)
            newest = await newest_epochs(outside)
            late: list[tuple[int, int]] = []

            def deliver(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
                """Hears what is published, also what the stream would refuse."""
                partition, epoch = int(subject.split(b".")[2]), msgspec.msgpack.decode(payload)["epoch"]
                if epoch < newest[partition]:
                    late.append((partition, epoch))

            await outside.connection.tap(f"{settings.subject_root}.verdict.>", deliver)
            first.thaw()
            assert await first.wait_exit() == Fenced.exit_code
            await publisher.more(300)
            await publisher.finish()
            streams = await outside.audit()
            assert not late, f"verdicts of (partition, epoch) after the takeover: {late[:5]}"
            assert_epochs_rise(streams.verdicts)


async def test_a_defender_told_to_leave_goes_within_10_s_and_a_standby_goes_on(
    own_server: NatsServer,
) -> None:
    """SIGTERM in the midst of load: exit 0, the standby has the ID before the lease could have ended."""
    settings = settings_for(own_server, **brisk(**PATIENT, pod_name="first"))
    async with fleet(settings) as outside:
        with Pod(settings) as first, Pod(another(settings, "second"), start=False) as second:
            await first.wait_serving()
            await second.start().wait_ready()
            assert second.lines("standby")
            publisher = outside.publisher(seed=SEED)
            publisher.begin()
            await publisher.more(random.Random(SEED).randrange(500, 1000))
            told_s = time.monotonic()
            first.sigterm()
            assert await first.wait_exit(deadline_s=10.0) == 0
            await second.wait_serving()
            assert time.monotonic() - told_s < settings.lease_held_s, "it was not released"
            await publisher.more(300)
            await publisher.finish()
            await outside.audit()
            assert second.lines("claimed")[0]["stable_id"] == "defender-0"


async def test_a_standby_takes_over_from_a_dead_defender_that_fell_silent(
    own_server: NatsServer,
) -> None:
    """SIGKILL of the whole pod: after SILENCE_S the standby, now the leader, deposes it and goes on."""
    settings = settings_for(own_server, **brisk(pod_name="first"))
    async with fleet(settings) as outside:
        with Pod(settings) as first, Pod(another(settings, "second"), start=False) as second:
            await first.wait_serving()
            await second.start().wait_ready()
            publisher = outside.publisher(seed=SEED)
            publisher.begin()
            await publisher.more(random.Random(SEED).randrange(500, 1000))
            killed_s = time.monotonic()
            first.kill()
            await second.wait_serving()
            assert time.monotonic() - killed_s > settings.silence_s - 2 * settings.renew_s, "too early"
            await publisher.finish()
            await outside.audit()


async def newest_epochs(outside: Fleet) -> dict[int, int]:
    """The epoch of each partition's consumer."""
    epochs: dict[int, int] = {}
    page = await outside.connection.api(f"CONSUMER.LIST.{outside.settings.stream_samples}", {"offset": 0})
    for consumer in page["consumers"]:
        partition, epoch = map(int, consumer["name"].removeprefix("p").split("-e"))
        epochs[partition] = max(epoch, epochs.get(partition, 0))
    assert len(epochs) == outside.settings.partitions
    return epochs


def assert_epochs_rise(verdicts: list[Stored]) -> None:
    """Nothing of an older epoch was stored after the first verdict of a newer one."""
    newest: dict[int, int] = {}
    for message in verdicts:
        epoch = msgspec.msgpack.decode(message.payload)["epoch"]
        assert epoch >= newest.get(message.partition, 0), f"epoch {epoch} after {newest[message.partition]}"
        newest[message.partition] = epoch
