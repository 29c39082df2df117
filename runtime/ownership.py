"""Acquires and releases partitions: record, epoch, consumer, position.

To own is to have written the record by compare-and-set (`runtime.ownership_record`). The owner makes the
consumer ``p<n>-e<epoch>`` just after the **position**, the largest sequence up to which everything is
stored, and then deletes the partition's older consumers: whoever still pulls from those gets an error and
stops.

Positions are told in several places: the ack floor of an older consumer, the record of an owner that
released, the newest verdict. Each is a lower bound of the truth, so the largest counts. Consumers live in
the server's memory (32 are made in 10 ms, on disk in 60-115 ms); after its restart the verdicts tell.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterable, Mapping
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from runtime import log
from runtime.bucket import Bucket, Conflict, Entry
from runtime.bus import TRANSIENT, Connection, NotFound
from runtime.errors import DefenderError, Fenced
from runtime.names import PARTITIONS_A_STREAM, parse_consumer
from runtime.ownership_record import (
    Owner,
    Record,
    State,
    acquire,
    decode,
    key,
    partition_of_key,
    release,
    require_new,
)
from runtime.wire import decode_verdict

if TYPE_CHECKING:
    from runtime.config import Settings

IN_FLIGHT_MAX: Final = 64
ACK_WAIT_S: Final = 300
"""Until a delivered message comes again by itself. An owner that dies is replaced by a new consumer, so this
only costs: a chamber that waits long for its history would get its messages twice."""
PATTERN: Final = "partition.*"
_LOG = log.get("ownership")
A = TypeVar("A")
B = TypeVar("B")


class Acquired(NamedTuple):
    """A partition that is ours: pull from *consumer* of *stream*; everything up to *position* is stored."""

    partition: int
    epoch: int
    position: int
    stream: str
    consumer: str
    before: int = 0
    """The epoch that ours replaced, whosever it was; 0 without one."""


class Told(NamedTuple):
    """What a samples stream tells of its partitions: last sequence, consumers and their ack floors."""

    last_seq: int
    floors: dict[int, dict[int, int]]
    """Ack floor by epoch by partition."""
    missing: dict[int, list[int]]
    """Epochs by partition of consumers that a lost server of the cluster has; it comes back with them."""


def decode_records(entries: Mapping[str, Entry]) -> dict[int, tuple[Record, int]]:
    """(record, epoch) of each partition from the bucket's entries."""
    records: dict[int, tuple[Record, int]] = {}
    for name, entry in entries.items():
        partition = partition_of_key(name)
        if partition is not None:
            record = decode(entry.value)
            records[partition] = (record, record.epoch or entry.revision)
    return records


class Want(NamedTuple):
    """A partition to acquire: its record as it stands (0: there is none) decides by compare-and-set.

    *warm*: it was released to us, so its record says all that there is to know.
    """

    partition: int
    record: Record
    revision: int
    warm: bool = False

    @property
    def epoch(self) -> int:
        """The epoch of the record as it stands; 0 when nobody ever owned the partition."""
        return self.record.epoch or (self.revision if self.record.state is not State.VACANT else 0)


class Held(NamedTuple):
    """What we acquired, the record that we wrote, and its revision."""

    acquired: Acquired
    record: Record
    revision: int


class Ownership:
    """Acquires and releases partitions for one defender. Methods raise the bus's TRANSIENT errors."""

    def __init__(self, connection: Connection, settings: Settings, me: Owner, *, random: Random) -> None:
        self.bucket = Bucket(
            connection,
            settings.nats_kv_assignments,
            random=random,
            timeout_s=settings.request_timeout_s,
        )
        self._connection = connection
        self._names = settings.names
        self._timeout_s = settings.request_timeout_s
        self._me = me
        self.held: dict[int, Held] = {}
        """What this process acquired and has not released."""
        self._deleting: set[asyncio.Task[None]] = set()

    async def acquire(
        self, wants: Iterable[Want], *, worker: int = -1, ack_pending_max: int = 20_000
    ) -> dict[int, Acquired]:
        """Own the partitions whose records stand as told: new epochs, new consumers, older ones deleted.

        What another wrote in between is missing from the result, as is what the server did not answer for;
        where it answered for nothing, that is raised. *ack_pending_max* bounds the messages of
        a partition that are delivered and not acknowledged. It can be called again after an error.
        """
        asked = sorted(wants)
        written = await _each(lambda want: self._write_owner(want, worker), asked)
        ours = [
            (want, revision) for want, revision in zip(asked, written, strict=True) if revision is not None
        ]
        cold = sorted({want.partition // PARTITIONS_A_STREAM for want, _ in ours if not want.warm})
        told = dict(zip(cold, await _each(self._told, cold), strict=True))

        failures: list[DefenderError] = []

        async def attach(one: tuple[Want, int]) -> Acquired | None:
            want, epoch = one
            try:
                if want.warm:
                    made = await self._attach_warm(want, epoch, ack_pending_max)
                else:
                    shard = told[want.partition // PARTITIONS_A_STREAM]
                    made = await self._attach(want, epoch, shard, ack_pending_max)
                await self._require_ours(made)
                return made
            except Fenced as error:
                _LOG.warning("not acquired", partition=want.partition, cause=str(error))
                return None
            except TRANSIENT as error:
                # In a cluster that lost a server some consumers take seconds to be made: the others go on.
                failures.append(error)
                return None

        attached = zip(ours, await _each(attach, ours), strict=True)
        acquired = [(want, revision, one) for (want, revision), one in attached if one is not None]
        if failures and not acquired:
            raise failures[0]
        if failures:
            _LOG.warning("not all acquired, tried again", failed=len(failures), cause=str(failures[0]))
        for want, revision, one in acquired:
            self.held[want.partition] = Held(one, acquire(want.record, self._me, worker), revision)
        return {want.partition: one for want, _, one in acquired}

    async def take_over(self, partitions: Iterable[int], *, worker: int = -1) -> dict[int, Acquired]:
        """Own the partitions, whoever has them."""
        entries = await self.bucket.entries(PATTERN)
        wants = []
        for partition in partitions:
            entry = entries.get(key(partition), Entry(key(partition), None, 0))
            wants.append(Want(partition, decode(entry.value), entry.revision))
        return await self.acquire(wants, worker=worker)

    async def release(self, partition: int, position: int, heir: str = "") -> tuple[Record, int]:
        """Give a partition back: everything up to *position* is stored. The record and its revision.

        Raises Fenced when it is not ours.
        """
        if partition not in self.held:
            raise Fenced(f"partition {partition} is not held by this process")
        acquired, record, held_revision = self.held[partition]
        released = release(record, acquired.epoch, position, heir)
        # Against the revision, not the owner's name: a restarted process of the same pod has that too.
        revision = await self._write(partition, released, held_revision)
        if revision is None:
            raise Fenced(f"partition {partition}: another acquired it after our epoch {acquired.epoch}")
        self.held.pop(partition, None)
        return released, revision

    async def release_all(self, positions: Mapping[int, int]) -> None:
        """Give back all that is held; *positions* by partition, where they rose since the acquisition.

        What another has acquired meanwhile is left to it.
        """

        async def give_back(one: Acquired) -> None:
            try:
                await self.release(one.partition, positions.get(one.partition, one.position))
            except Fenced as error:
                self.held.pop(one.partition, None)
                _LOG.warning("not released", partition=one.partition, cause=str(error))

        await _each(give_back, [held.acquired for held in self.held.values()])

    async def disown(self, partition: int, record: Record, revision: int) -> None:
        """Release a record that names us although we hold nothing of it (a process before us did)."""
        await self._write(partition, release(record, record.epoch or revision, record.position), revision)

    async def restore(self, partition: int, revision: int) -> int | None:
        """Write the record of a held partition again, over *revision* (0: the bucket lost it); its epoch
        stays. The new revision; None when another wrote in between."""
        held = self.held[partition]
        record = msgspec.structs.replace(
            held.record, epoch=held.acquired.epoch, position=held.acquired.position
        )
        written = await self._write(partition, record, revision)
        if written is not None:
            self.held[partition] = Held(held.acquired, record, written)
        return written

    async def records(self) -> dict[int, tuple[Record, int]]:
        """(record, epoch) of every partition that ever had an owner."""
        return decode_records(await self.bucket.entries(PATTERN))

    async def close(self) -> None:
        """Waits for the deletions that are under way."""
        await asyncio.gather(*self._deleting, return_exceptions=True)

    async def _write_owner(self, want: Want, worker: int) -> int | None:
        """A write that was not answered counts as lost, even if the record is as we would have it: another
        process of our pod may have written the same. It is then acquired again, with an epoch of its own."""
        value = msgspec.json.encode(acquire(want.record, self._me, worker))
        try:
            return await self.bucket.update(key(want.partition), value, want.revision)
        except Conflict:
            return None

    async def _write(self, partition: int, record: Record, revision: int) -> int | None:
        """The revision of the record written by compare-and-set; None when another wrote before."""
        value = msgspec.json.encode(record)
        try:
            return await self.bucket.update(key(partition), value, revision)
        except Conflict:
            entry = await self.bucket.get(key(partition))
            # Ours after all: it was written, and the reply got lost.
            return entry.revision if entry is not None and entry.value == value else None

    async def _told(self, shard: int) -> Told:
        """One pass over a samples stream's consumers, page by page."""
        stream = self._names.samples_stream(shard * PARTITIONS_A_STREAM)
        state = await self._connection.api(f"STREAM.INFO.{stream}", timeout_s=self._timeout_s)
        floors: dict[int, dict[int, int]] = {}
        missing: dict[int, list[int]] = {}
        offset, total = 0, 1
        while offset < total:
            page = await self._connection.api(
                f"CONSUMER.LIST.{stream}", {"offset": offset}, timeout_s=self._timeout_s
            )
            consumers = page["consumers"] or []
            for consumer in consumers:
                parsed = parse_consumer(consumer["name"])
                if parsed is not None:
                    floors.setdefault(parsed[0], {})[parsed[1]] = consumer["ack_floor"]["stream_seq"]
            for partition, epoch in filter(None, map(parse_consumer, page.get("missing") or ())):
                missing.setdefault(partition, []).append(epoch)
            offset, total = offset + len(consumers), page["total"] if consumers else 0
        return Told(state["state"]["last_seq"], floors, missing)

    async def _attach_warm(self, want: Want, epoch: int, ack_pending_max: int) -> Acquired:
        """The consumer of a partition that was released to us: in the gap, so nothing is read first."""
        partition, stream = want.partition, self._names.samples_stream(want.partition)
        require_new(partition, epoch, (want.record.epoch,))
        consumer = await self._create_consumer(partition, epoch, want.record.position, ack_pending_max)
        if want.record.epoch:
            older = self._names.consumer(partition, want.record.epoch)
            self._delete_later(stream, older)
        return Acquired(partition, epoch, want.record.position, stream, consumer, want.epoch)

    async def _attach(self, want: Want, epoch: int, told: Told, ack_pending_max: int) -> Acquired:
        partition, stream = want.partition, self._names.samples_stream(want.partition)
        floors = told.floors.get(partition, {})
        newer = [other for other in floors if other >= epoch]
        if newer:
            await self._require_latest(partition, epoch, max(newer))
        missing = told.missing.get(partition, ())
        require_new(partition, epoch, (want.record.epoch, *floors, *missing))
        position = max(want.record.position, *floors.values(), 0)
        if not floors:
            position = max(position, await self._position_of_verdicts(partition))
        if position > told.last_seq:
            _LOG.error(
                "positions are ahead of the samples: was the stream made anew, or did the server lose "
                "its end? Reports that it numbers again are judged",
                partition=partition,
                position=position,
                last_seq=told.last_seq,
            )
            position = told.last_seq
        consumer = await self._create_consumer(partition, epoch, position, ack_pending_max)
        for older in floors:
            await self._delete_consumer(stream, self._names.consumer(partition, older))
        for older in missing:
            if older < epoch:
                self._delete_later(stream, self._names.consumer(partition, older))
        return Acquired(partition, epoch, position, stream, consumer, want.epoch)

    async def _require_latest(self, partition: int, epoch: int, newer: int) -> None:
        """A consumer of a later epoch: either we were overtaken, or the bucket was made anew."""
        entry = await self.bucket.get(key(partition))
        if entry is None or entry.revision != epoch:
            raise Fenced(f"partition {partition}: another acquired it with epoch {newer}, after our {epoch}")
        _LOG.error(
            "epochs went back: was the bucket of assignments made anew?",
            partition=partition,
            epoch=epoch,
            before=newer,
        )

    async def _position_of_verdicts(self, partition: int) -> int:
        """The position that the partition's newest verdict carries; 0 without one."""
        try:
            answer = await self._connection.api(
                f"STREAM.MSG.GET.{self._names.verdicts_stream(partition)}",
                {"last_by_subj": self._names.verdict(partition)},
                timeout_s=self._timeout_s,
            )
            return decode_verdict(base64.b64decode(answer["message"]["data"])).position
        except NotFound:
            return 0
        except msgspec.MsgspecError as error:
            _LOG.error("the newest verdict cannot be read", partition=partition, exc=error)
            return 0

    async def _create_consumer(self, partition: int, epoch: int, position: int, ack_pending_max: int) -> str:
        stream, name = self._names.samples_stream(partition), self._names.consumer(partition, epoch)
        config = {
            "name": name,
            "durable_name": name,
            "filter_subject": self._names.incoming(partition),
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": position + 1,
            "ack_policy": "all",
            "ack_wait": ACK_WAIT_S * 10**9,
            "max_ack_pending": ack_pending_max,
            "max_deliver": -1,
            "mem_storage": True,
            "num_replicas": 1,  # no RAFT group each: making one takes seconds when a server is lost
        }
        await self._connection.api(
            f"CONSUMER.CREATE.{stream}.{name}",
            {"stream_name": stream, "config": config, "action": "create"},
            timeout_s=self._timeout_s,
        )
        return name

    async def _require_ours(self, made: Acquired) -> None:
        """Whoever acquired after us may have looked for our consumer before we made it (this process stood
        still in between): then it is ours to delete. Raises Fenced."""
        entry = await self.bucket.get_from_leader(key(made.partition))
        if entry is None or entry.revision != made.epoch:
            await self._delete_consumer(made.stream, made.consumer)
            raise Fenced(f"partition {made.partition}: another acquired it after our epoch {made.epoch}")

    def _delete_later(self, stream: str, name: str) -> None:
        async def delete() -> None:
            try:
                await self._delete_consumer(stream, name)
            except TRANSIENT as error:
                _LOG.warning("consumer not deleted; the next owner does it", consumer=name, cause=str(error))

        task = asyncio.get_running_loop().create_task(delete())
        self._deleting.add(task)
        task.add_done_callback(self._deleting.discard)

    async def _delete_consumer(self, stream: str, name: str) -> None:
        try:
            await self._connection.api(f"CONSUMER.DELETE.{stream}.{name}", timeout_s=self._timeout_s)
        except NotFound:
            _LOG.debug("consumer was gone", consumer=name)


async def _each(work: Callable[[A], Awaitable[B]], items: list[A]) -> list[B]:
    """``work`` of each item, at most 64 at a time, in the items' order. Raises the first error as itself."""
    gate = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def one(item: A) -> B:
        async with gate:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as problems:
        raise problems.exceptions[0] from None
    return [task.result() for task in tasks]
