"""Partitions acquired and released on a real server: epochs, consumers, positions."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import Any

import msgspec
import pytest
from fleet import connected, settings_for

from runtime.bus import Connection, NotFound
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.errors import Fenced
from runtime.names import parse_consumer
from runtime.ownership import Ownership, Want
from runtime.ownership_record import Owner, Record, State
from runtime.resources import ensure, wanted
from runtime.wire import Verdict, msgpack_encoder


def ownership(connection: Connection, settings: Settings, number: int = 0) -> Ownership:
    owner = Owner(f"defender-{number}", f"uid-{number}")
    return Ownership(connection, settings, owner, random=Random(number))


async def consumers_of(connection: Connection, settings: Settings) -> dict[str, Any]:
    listed = await connection.api(f"CONSUMER.LIST.{settings.stream_samples}")
    return {consumer["name"]: consumer for consumer in listed["consumers"] or []}


async def make_bucket_by_hand(connection: Connection, settings: Settings) -> None:
    """The bucket of assignments is lost and made as people do: its revisions begin at 1."""
    want = next(want for want in wanted(settings) if want.name == f"KV_{settings.nats_kv_assignments}")
    with contextlib.suppress(NotFound):
        await connection.api(f"STREAM.DELETE.{want.name}")
    await connection.api(f"STREAM.CREATE.{want.name}", want.config)
    await ensure(connection, settings)


async def publish(connection: Connection, settings: Settings, reports: int) -> int:
    """Reports of one chamber; its partition."""
    for _ in range(reports):
        await connection.store(settings.names.sample("CH-1"), b"{}")
    return settings.names.partition_of("CH-1")


async def pull_and_ack(
    connection: Connection, stream: str, consumer: str, batch: int, acked: int
) -> list[int]:
    """Pulls *batch* messages, acknowledges the *acked*-th of them (all up to it); sequences of the batch."""
    got: list[bytes] = []
    inbox = connection.new_inbox()
    done = asyncio.Event()

    def deliver(_s: bytes, reply: bytes, _p: bytes, _h: bytes | None) -> None:
        got.append(reply)
        if len(got) == batch:
            done.set()

    sid = await connection.tap(inbox, deliver)
    await connection.publish(
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", b'{"batch":%d,"expires":3000000000}' % batch, inbox
    )
    await asyncio.wait_for(done.wait(), 5)
    if acked:
        await connection.call(got[acked - 1].decode(), b"+ACK")
    await connection.untap(sid)
    return [int(reply.split(b".")[5]) for reply in got]


async def test_acquiring_writes_the_records_and_makes_a_consumer_a_partition(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        owner = ownership(connection, settings)
        acquired = await owner.take_over(range(64))
        assert sorted(acquired) == list(range(64))
        records = await owner.records()
        consumers = await consumers_of(connection, settings)
        for partition, one in acquired.items():
            record, epoch = records[partition]
            assert (record.state, record.owner, record.pod_uid) == (State.OWNED, "defender-0", "uid-0")
            assert one.epoch == epoch
            assert one.consumer == f"p{partition}-e{epoch}"
            config = consumers[one.consumer]["config"]
            assert config["filter_subject"] == settings.names.incoming(partition)
            assert config["ack_policy"] == "all"
            assert config["max_deliver"] == -1
        assert len(consumers) == 64


async def test_a_second_acquisition_has_a_higher_epoch_and_deletes_the_older_consumer(
    settings: Settings,
) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        first = await ownership(connection, settings).take_over([1, 2, 3])
        second = await ownership(connection, settings, 1).take_over([2])
        assert second[2].epoch > first[2].epoch
        assert {parse_consumer(name) for name in await consumers_of(connection, settings)} == {
            (1, first[1].epoch),
            (2, second[2].epoch),
            (3, first[3].epoch),
        }


async def test_the_same_process_that_acquires_again_gets_a_new_epoch(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        owner = ownership(connection, settings)
        first, second = await owner.take_over([5]), await owner.take_over([5])
        assert second[5].epoch > first[5].epoch


async def test_the_position_is_the_ack_floor_of_the_consumer_before(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        partition = await publish(connection, settings, 10)
        first = (await ownership(connection, settings).take_over([partition]))[partition]
        assert first.position == 0
        assert await pull_and_ack(connection, first.stream, first.consumer, batch=8, acked=6) == [
            *range(1, 9)
        ]
        second = (await ownership(connection, settings, 1).take_over([partition]))[partition]
        assert second.position == 6
        assert await pull_and_ack(connection, second.stream, second.consumer, batch=4, acked=0) == [
            7,
            8,
            9,
            10,
        ]
        third = (await ownership(connection, settings, 2).take_over([partition]))[partition]
        assert third.position == 6


async def test_the_position_is_the_record_s_when_no_consumer_is_left(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        partition = await publish(connection, settings, 10)
        owner = ownership(connection, settings)
        held = (await owner.take_over([partition]))[partition]
        await owner.release(partition, 9)
        await connection.api(f"CONSUMER.DELETE.{held.stream}.{held.consumer}")
        assert (await ownership(connection, settings, 1).take_over([partition]))[partition].position == 9


async def test_the_position_is_the_newest_verdict_s_when_all_else_is_lost(settings: Settings) -> None:
    names = settings.names
    async with connected(settings) as connection:
        await ensure(connection, settings)
        partition = await publish(connection, settings, 10)
        for seq, position in ((3, 1), (4, 2), (5, 4)):
            verdict = Verdict(f"CH-{seq % 2}", seq=seq, ordinal=1, epoch=1, spec=0, position=position)
            await connection.store(names.verdict(partition, verdict.chamber), msgpack_encoder.encode(verdict))
        other = (partition + 1) % 64
        acquired = await ownership(connection, settings).take_over([partition, other])
        assert acquired[partition].position == 4
        assert acquired[other].position == 0


async def test_a_position_beyond_the_stream_s_end_is_brought_back_to_it(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        partition = await publish(connection, settings, 3)
        owner = ownership(connection, settings)
        held = (await owner.take_over([partition]))[partition]
        await owner.release(partition, 5000)
        again = (await ownership(connection, settings, 1).take_over([partition]))[partition]
        assert again.position == 3
        assert "ahead of the samples" in caplog.text
        assert again.epoch > held.epoch


async def test_a_release_leaves_position_and_epoch_for_the_next_owner(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        owner = ownership(connection, settings)
        held = await owner.take_over([1, 2])
        await owner.release_all({1: 0, 2: 0})
        records = await owner.records()
        assert records[1] == (Record(State.RELEASED, "defender-0", "uid-0", held[1].epoch, 0), held[1].epoch)
        assert owner.held == {}
        with pytest.raises(Fenced):
            await owner.release(1, 0)


async def test_a_former_owner_cannot_release_what_another_acquired(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        former, same_pod = ownership(connection, settings), ownership(connection, settings)
        await former.take_over([7])
        await same_pod.take_over([7])
        with pytest.raises(Fenced, match="partition 7"):
            await former.release(7, 99)
        record, _ = (await same_pod.records())[7]
        assert (record.state, record.position) == (State.OWNED, 0)


async def test_an_owner_that_was_overtaken_while_it_acquired_is_fenced(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        slow, fast = ownership(connection, settings), ownership(connection, settings, 1)
        want = Want(7, Record(), 0)
        epoch = await slow._write_owner(want, worker=0)
        assert epoch is not None
        overtaking = (await fast.take_over([7]))[7]
        with pytest.raises(Fenced, match=str(overtaking.epoch)):
            await slow._attach(want, epoch, await slow._told(0), 100)
        assert list(await consumers_of(connection, settings)) == [overtaking.consumer]


async def test_a_bucket_made_anew_does_not_lose_the_position(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        partition = await publish(connection, settings, 5)
        for _ in range(3):
            first = (await ownership(connection, settings).take_over([partition]))[partition]
        await pull_and_ack(connection, first.stream, first.consumer, batch=5, acked=5)
        await make_bucket_by_hand(connection, settings)
        again = (await ownership(connection, settings).take_over([partition]))[partition]
        assert again.epoch < first.epoch
        assert again.position == 5
        assert list(await consumers_of(connection, settings)) == [again.consumer]


async def test_a_bucket_that_defenders_make_anew_gives_no_epoch_again(settings: Settings) -> None:
    async with connected(settings) as connection:
        epochs = []
        for _ in range(3):
            await ensure(connection, settings)
            for _ in range(4):
                epochs.append((await ownership(connection, settings).take_over([3]))[3].epoch)
            await connection.api(f"STREAM.DELETE.KV_{settings.nats_kv_assignments}")
        assert epochs == sorted(set(epochs))


async def test_an_epoch_that_comes_again_in_a_bucket_made_anew_is_not_taken(settings: Settings) -> None:
    """Its consumer is the former owner's, who may pull from it still."""
    async with connected(settings) as connection:
        await make_bucket_by_hand(connection, settings)
        partition = await publish(connection, settings, 5)
        first = (await ownership(connection, settings).take_over([partition]))[partition]
        await make_bucket_by_hand(connection, settings)
        heir = ownership(connection, settings, 1)
        assert await heir.take_over([partition]) == {}
        assert list(await consumers_of(connection, settings)) == [first.consumer]
        again = (await heir.take_over([partition]))[partition]
        assert again.epoch == first.epoch + 1
        assert list(await consumers_of(connection, settings)) == [again.consumer]


async def test_a_restored_epoch_that_comes_again_in_a_handoff_is_not_taken(settings: Settings) -> None:
    async with connected(settings) as connection:
        await make_bucket_by_hand(connection, settings)
        former, heir = ownership(connection, settings), ownership(connection, settings, 1)
        for _ in range(3):
            held = (await former.take_over([3]))[3]
        await make_bucket_by_hand(connection, settings)
        await former.restore(3, 0)
        record, revision = await former.release(3, 0, "defender-1")
        assert revision + 1 == held.epoch
        assert await heir.acquire([Want(3, record, revision, warm=True)]) == {}
        again = (await heir.take_over([3]))[3]
        assert again.epoch == held.epoch + 1
        assert list(await consumers_of(connection, settings)) == [again.consumer]


async def test_consumers_are_listed_over_several_pages(nats_server: NatsServer) -> None:
    settings = msgspec.structs.replace(settings_for(nats_server), partitions=64)
    async with connected(settings) as connection:
        await ensure(connection, settings)
        stream = settings.stream_samples
        for number in range(300):
            config = {"name": f"p9-e{number}", "durable_name": f"p9-e{number}", "ack_policy": "all"}
            await connection.api(
                f"CONSUMER.CREATE.{stream}.p9-e{number}", {"stream_name": stream, "config": config}
            )
        told = await ownership(connection, settings)._told(0)
        assert sorted(told.floors[9]) == list(range(300))


async def test_a_partition_whose_record_another_wrote_is_not_acquired(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        late, fast = ownership(connection, settings), ownership(connection, settings, 1)
        held = await fast.take_over([7])
        acquired = await late.acquire([Want(7, Record(), 0), Want(8, Record(), 0)])
        assert sorted(acquired) == [8]
        assert sorted(late.held) == [8]
        assert (await late.records())[7][1] == held[7].epoch


async def test_a_partition_handed_over_warm_goes_on_at_its_record_s_position(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        partition = await publish(connection, settings, 10)
        former, heir = ownership(connection, settings), ownership(connection, settings, 1)
        before = (await former.take_over([partition]))[partition]
        record, revision = await former.release(partition, 4, "defender-1")
        assert record.next == "defender-1"
        acquired = (await heir.acquire([Want(partition, record, revision, warm=True)]))[partition]
        await heir.close()
        assert (acquired.position, acquired.before) == (4, before.epoch)
        assert list(await consumers_of(connection, settings)) == [acquired.consumer]
        got = await pull_and_ack(connection, acquired.stream, acquired.consumer, batch=6, acked=0)
        assert got == [*range(5, 11)]


async def test_a_lost_record_is_written_again_with_the_epoch_that_is_held(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        owner = ownership(connection, settings)
        held = (await owner.take_over([3]))[3]
        await connection.api(f"STREAM.DELETE.KV_{settings.nats_kv_assignments}")
        await ensure(connection, settings)
        revision = await owner.restore(3, 0)
        assert revision is not None
        record, epoch = (await owner.records())[3]
        assert (record.state, record.pod_uid, epoch) == (State.OWNED, "uid-0", held.epoch)
        await owner.release(3, 0)
        assert (await owner.records())[3][0].state is State.RELEASED


async def test_a_record_left_behind_by_our_own_pod_is_disowned(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        owner, again = ownership(connection, settings), ownership(connection, settings)
        held = (await owner.take_over([3]))[3]
        record, epoch = (await again.records())[3]
        await again.disown(3, record, epoch)
        record, epoch = (await again.records())[3]
        assert (record.state, epoch) == (State.RELEASED, held.epoch)
