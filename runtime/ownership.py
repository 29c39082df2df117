"""Who owns a partition: its record, its epoch, its consumer, its position.

    vacant ──acquire──► owned ──begin_release──► releasing ──release──► released ──acquire──► owned
                         │ ▲                        │
                         │ └────────acquire─────────┴─ (the owner died or was fenced: its lease is ours)
                         └──release──► released         (no successor to wait for)

To own is to have written the record by compare-and-set; the revision of that write is the **epoch**. The
owner makes the consumer ``p<n>-e<epoch>`` just after the **position**, the largest sequence up to which
everything is stored, and then deletes the partition's older consumers: whoever still pulls from those
gets an error and stops.

Positions are told in several places: the ack floor of an older consumer, the record of an owner that
released, the newest verdict. Each is a lower bound of the truth, so the largest counts. Consumers live in
the server's memory (32 are made in 10 ms, on disk in 60-115 ms); after its restart the verdicts tell.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from runtime import log
from runtime.bucket import Bucket, Conflict, Entry
from runtime.bus import Connection, NotFound
from runtime.errors import Fenced, IllegalTransition
from runtime.names import PARTITIONS_A_STREAM, parse_consumer
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


class State(StrEnum):
    """Where a partition is between its owners."""

    VACANT = "vacant"
    OWNED = "owned"
    RELEASING = "releasing"
    RELEASED = "released"


LEGAL: Final[Mapping[State, frozenset[State]]] = {
    State.VACANT: frozenset({State.OWNED}),
    State.OWNED: frozenset({State.OWNED, State.RELEASING, State.RELEASED}),
    State.RELEASING: frozenset({State.OWNED, State.RELEASED}),
    State.RELEASED: frozenset({State.OWNED}),
}
"""Every legal change. OWNED to OWNED is a takeover: the new owner holds the claim of the ring's member."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A partition's ownership. *epoch* is 0 in the write of an acquisition: its revision is the epoch."""

    state: State = State.VACANT
    owner: str = ""
    pod_uid: str = ""
    epoch: int = 0
    position: int = 0
    next: str = ""
    worker: int = -1
    """The owner's worker that serves it, for people; -1 when it was not told."""


class Owner(NamedTuple):
    """Who acquires: the stable ID, and the pod that holds it."""

    stable_id: str
    pod_uid: str


class Acquired(NamedTuple):
    """A partition that is ours: pull from *consumer* of *stream*; everything up to *position* is stored."""

    partition: int
    epoch: int
    position: int
    stream: str
    consumer: str


class Told(NamedTuple):
    """What a samples stream tells of its partitions: last sequence, consumers and their ack floors."""

    last_seq: int
    floors: dict[int, dict[int, int]]
    """Ack floor by epoch by partition."""


def key(partition: int) -> str:
    return f"partition.{partition}"


def decode(value: bytes | None) -> Record:
    """The record of a key's value; a vacant one when there is none. Raises msgspec.MsgspecError."""
    return Record() if value is None else msgspec.json.decode(value, type=Record)


def decode_records(entries: Mapping[str, Entry]) -> dict[int, tuple[Record, int]]:
    """(record, epoch) of each partition from the bucket's entries."""
    records: dict[int, tuple[Record, int]] = {}
    for name, entry in entries.items():
        head, _, number = name.partition(".")
        if head == "partition" and number.isdecimal():
            record = decode(entry.value)
            records[int(number)] = (record, record.epoch or entry.revision)
    return records


def changed(record: Record, state: State, **fields: Any) -> Record:
    """The record in its next state. Raises IllegalTransition."""
    if state not in LEGAL[record.state]:
        raise IllegalTransition("partition", record.state, state)
    return msgspec.structs.replace(record, state=state, **fields)


def acquire(record: Record, me: Owner, worker: int = -1) -> Record:
    """The record with *me* as its owner, from any state."""
    return changed(
        record, State.OWNED, owner=me.stable_id, pod_uid=me.pod_uid, epoch=0, next="", worker=worker
    )


def release(record: Record, epoch: int, position: int) -> Record:
    """The record given back, with the position for the next owner. Raises IllegalTransition."""
    return changed(record, State.RELEASED, epoch=epoch, position=max(position, record.position))


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
        self.held: dict[int, tuple[Acquired, Record]] = {}
        """What this process acquired and has not released, with the record that it wrote."""

    async def acquire(
        self, partitions: Iterable[int], *, worker: int = -1, ack_pending_max: int = 20_000
    ) -> dict[int, Acquired]:
        """Own the partitions, whoever had them: new epochs, new consumers, the older ones deleted.

        *ack_pending_max* bounds the messages of a partition that are delivered and not acknowledged.
        It can be called again after an error: the epochs rise.
        """
        wanted = sorted(set(partitions))
        written = await _each(lambda partition: self._write_owner(partition, worker), wanted)
        entries = dict(zip(wanted, written, strict=True))
        shards = sorted({partition // PARTITIONS_A_STREAM for partition in wanted})
        told = dict(zip(shards, await _each(self._told, shards), strict=True))

        async def attach(partition: int) -> Acquired:
            shard = told[partition // PARTITIONS_A_STREAM]
            return await self._attach(partition, entries[partition], shard, ack_pending_max)

        acquired = await _each(attach, wanted)
        for one in acquired:
            self.held[one.partition] = one, decode(entries[one.partition].value)
        return {one.partition: one for one in acquired}

    async def release(self, partition: int, position: int) -> None:
        """Give a partition back: everything up to *position* is stored. Raises Fenced when it is not ours."""
        if partition not in self.held:
            raise Fenced(f"partition {partition} is not held by this process")
        acquired, record = self.held[partition]
        released = msgspec.json.encode(release(record, acquired.epoch, position))
        try:
            # Against the epoch, not the owner's name: a restarted process of the same pod has that too.
            await self.bucket.update(key(partition), released, acquired.epoch)
        except Conflict:
            entry = await self.bucket.get(key(partition))
            if entry is None or entry.value != released:
                lost = f"partition {partition}: another acquired it after our epoch {acquired.epoch}"
                raise Fenced(lost) from None
        del self.held[partition]

    async def release_all(self, positions: Mapping[int, int]) -> None:
        """Give back all that is held; *positions* by partition, where they rose since the acquisition."""
        await _each(
            lambda one: self.release(one.partition, positions.get(one.partition, one.position)),
            [acquired for acquired, _ in self.held.values()],
        )

    async def records(self) -> dict[int, tuple[Record, int]]:
        """(record, epoch) of every partition that ever had an owner."""
        return decode_records(await self.bucket.entries(PATTERN))

    async def _write_owner(self, partition: int, worker: int) -> Entry:
        return await self.bucket.change(
            key(partition), lambda value: msgspec.json.encode(acquire(decode(value), self._me, worker))
        )

    async def _told(self, shard: int) -> Told:
        """One pass over a samples stream's consumers, page by page."""
        stream = self._names.samples_stream(shard * PARTITIONS_A_STREAM)
        state = await self._connection.api(f"STREAM.INFO.{stream}", timeout_s=self._timeout_s)
        floors: dict[int, dict[int, int]] = {}
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
            offset, total = offset + len(consumers), page["total"] if consumers else 0
        return Told(state["state"]["last_seq"], floors)

    async def _attach(self, partition: int, entry: Entry, told: Told, ack_pending_max: int) -> Acquired:
        epoch, stream = entry.revision, self._names.samples_stream(partition)
        floors = told.floors.get(partition, {})
        newer = [other for other in floors if other >= epoch]
        if newer:
            await self._require_latest(partition, epoch, max(newer))
        position = max(decode(entry.value).position, *floors.values(), 0)
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
        return Acquired(partition, epoch, position, stream, consumer)

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
        }
        await self._connection.api(
            f"CONSUMER.CREATE.{stream}.{name}",
            {"stream_name": stream, "config": config, "action": "create"},
            timeout_s=self._timeout_s,
        )
        return name

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
