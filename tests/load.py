"""Load from outside of a defender, and what the streams hold at its end.

`Publisher` is host software: it publishes reports at a steady rate until each is stored, through whatever
happens to the server. `audit` is an auditor's: it reads streams, never a defender's word, and holds them
against the oracle.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fleet import connected, until

from runtime import specs as chart_specs
from runtime.bucket import Bucket
from runtime.bus import Connection, Reply, delivery_of, frame_pub
from runtime.config import Settings
from runtime.errors import DefenderError
from runtime.jetstream import TRANSIENT, checked_ack
from runtime.resources import ensure
from runtime.specs import Baseline, ChartSpec, Specs
from tests.oracle import Oracle, Stored, Streams

SPECS = Specs(
    charts=(
        ChartSpec(chart="given_*", baseline=Baseline.GIVEN, centre=0.11),
        ChartSpec(chart="moving_*", baseline=Baseline.MOVING, minimum=5),
        ChartSpec(chart="frozen_*", phase_one=12, minimum=4),
    ),
    default=ChartSpec(phase_one=16, minimum=6),
)
CHARTS = ("given_a", "moving_b", "frozen_c", "other_d")
DIFFERENCES_SHOWN = 12


def reports(seed: int, chambers: int) -> Iterator[tuple[str, bytes]]:
    """(chamber, payload) without end: charts of each baseline, absences, excursions, resets, bad ones."""
    rng = random.Random(seed)
    for number in range(10**9):
        chamber = f"C-{rng.randrange(chambers):02}"
        encode = msgspec.json.encode if rng.random() < 0.5 else msgspec.msgpack.encode
        tree: dict[str, Any] = {"run": f"s{seed}-{number}"}
        dice = rng.random()
        if dice < 0.004:
            tree["reset"] = "maintenance"
            if rng.random() < 0.5:
                tree["charts"] = rng.sample(CHARTS, 2)
            yield chamber, encode(tree)
            continue
        present = [chart for chart in CHARTS if rng.random() < 0.95] or ["other_d"]
        units = [round(rng.uniform(10.0, 40.0), 2) for _ in present]
        counts: list[float] = [sum(rng.random() < 0.1 for _ in range(round(n))) for n in units]
        if rng.random() < 0.02:
            counts[0] = 30
        if dice < 0.008:
            counts[-1] = -1
        elif dice < 0.012:
            units.append(1.0)
        yield chamber, encode({**tree, "charts": present, "counts": counts, "units": units})


class Publisher:
    """Publishes *rate* reports a second from `begin` to `finish`; what was not stored is sent again."""

    def __init__(
        self, connection: Connection, settings: Settings, *, seed: int, rate: int = 1000, chambers: int = 24
    ) -> None:
        self.seed, self.stored = seed, 0
        self._connection, self._settings, self._rate = connection, settings, rate
        self._source = reports(seed, chambers)
        self._again: deque[tuple[str, bytes, bytes]] = deque()
        self._number = 0
        self._waiting = 0
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._publish())

    async def more(self, reports: int, deadline_s: float = 20.0) -> None:
        """Until so many more reports are stored."""
        wanted = self.stored + reports
        await until(lambda: self.stored >= wanted, deadline_s=deadline_s, what=f"{wanted} reports stored")

    async def finish(self, deadline_s: float = 20.0) -> int:
        """Publishes nothing new, waits until all is stored; how many reports that are."""
        assert self._task is not None, "it was never begun"
        self._stopping = True
        async with asyncio.timeout(deadline_s):
            await self._task
        return self.stored

    async def _publish(self) -> None:
        begun = time.monotonic()
        due = 0
        while not self._stopping or self._again or self._waiting:
            try:
                while self._again:
                    self._send(self._again[0])
                    self._again.popleft()
                if not self._stopping:
                    due = int((time.monotonic() - begun) * self._rate)
                    while self._number < due:
                        self._send(self._next())
            except TRANSIENT:
                begun = time.monotonic() - self._number / self._rate  # host software waits, too
            await asyncio.sleep(0.01)

    def _next(self) -> tuple[str, bytes, bytes]:
        chamber, payload = next(self._source)
        message_id = f"Nats-Msg-Id:{self.seed}-{self._number}\r\n".encode()
        self._number += 1
        message = (self._settings.names.sample(chamber), payload, message_id)
        if not self._connection.is_connected:
            self._again.append(message)
        return message

    def _send(self, message: tuple[str, bytes, bytes]) -> None:
        subject, payload, headers = message
        reply = self._connection.ask(subject, payload, headers)
        self._waiting += 1

        def heard(done: asyncio.Future[Reply]) -> None:
            self._waiting -= 1
            if done.cancelled():
                return
            try:
                checked_ack(subject, done.result())
                self.stored += 1
            except DefenderError:
                self._again.append(message)

        reply.add_done_callback(heard)


@dataclass
class Fleet:
    """The outside of one fleet: a connection that survives the server, its specs, a load."""

    settings: Settings
    connection: Connection
    specs: dict[int, Specs] = field(default_factory=lambda: {0: Specs()})

    async def apply(self, specs: Specs) -> int:
        """Stores chart specs as `defender specs apply` does; their revision."""
        bucket = Bucket(self.connection, self.settings.nats_kv_chart_specs, random=random.Random())
        revision = await bucket.put(chart_specs.KEY, chart_specs.encode(specs))
        self.specs[revision] = specs
        return revision

    def publisher(self, *, seed: int, **options: Any) -> Publisher:
        print(f"seed {seed}")
        return Publisher(self.connection, self.settings, seed=seed, **options)

    async def publish(self, messages: Iterable[tuple[bytes, bytes]]) -> list[int]:
        """Stores (chamber, payload) in this order, in one go; their sequences."""
        inbox, replies = self.connection.inbox(), list[bytes]()
        sid = await self.connection.tap(inbox.decode(), lambda *message: replies.append(message[2]))
        prefix = self.settings.names.sample("").encode()
        frames = [frame_pub(prefix + chamber, payload, inbox) for chamber, payload in messages]
        self.connection.write(b"".join(frames))
        await until(lambda: len(replies) == len(frames), what="every report is stored")
        await self.connection.untap(sid)
        return [int(msgspec.json.decode(reply)["seq"]) for reply in replies]

    async def messages(self, stream: str) -> int:
        answer = await self.connection.api(f"STREAM.INFO.{stream}")
        return int(answer["state"]["messages"])

    @property
    def _shards(self) -> range:
        return range(self.settings.names.shards)

    async def unsettled(self) -> int:
        """Reports that are not acknowledged yet; a partition without a consumer counts as one."""
        names, left, seen = self.settings.names, 0, set()
        for shard in self._shards:
            offset, total = 0, 1
            while offset < total:
                page = await self.connection.api(
                    f"CONSUMER.LIST.{names.samples_stream(shard * 64)}", {"offset": offset}
                )
                consumers = page["consumers"] or []
                for one in consumers:
                    seen.add(one["config"]["filter_subject"])
                    left += one["num_pending"] + one["num_ack_pending"]
                offset, total = offset + len(consumers), page["total"] if consumers else 0
        return left + names.partitions - len(seen)

    async def settled(self, deadline_s: float = 20.0) -> None:
        """Until every report is acknowledged."""
        await until(self._is_settled, deadline_s=deadline_s, what="every report is acknowledged")

    async def _is_settled(self) -> bool:
        try:
            return await self.unsettled() == 0
        except TRANSIENT:
            return False

    async def read(self) -> Streams:
        """Everything that the fleet's streams hold."""
        names = self.settings.names
        streams = Streams()
        for shard in self._shards:
            streams.samples += await read_stream(self.connection, names.samples_stream(shard * 64))
            streams.verdicts += await read_stream(self.connection, names.verdicts_stream(shard * 64))
        streams.alarms = await read_stream(self.connection, names.alarms)
        streams.rejected = await read_stream(self.connection, names.rejected)
        return streams

    async def audit(self, deadline_s: float = 20.0) -> Streams:
        """Waits until all is settled; fails unless the streams hold exactly what the oracle says."""
        await self.settled(deadline_s)
        streams = await self.read()
        differences = self.differences(streams)
        shown = "\n".join(differences[:DIFFERENCES_SHOWN])
        assert not differences, f"{len(differences)} differences from the oracle:\n{shown}"
        return streams

    def differences(self, streams: Streams) -> list[str]:
        """Where the streams do not hold what the oracle says."""
        settings = self.settings
        oracle = Oracle(window=settings.window, depth=settings.history_depth, specs=self.specs)
        return oracle.compare(streams, settings.report_bytes_max)


@asynccontextmanager
async def fleet(settings: Settings, specs: Specs | None = SPECS) -> AsyncIterator[Fleet]:
    """A fleet's resources, made, and its specs applied, before any defender starts."""
    async with connected(settings) as connection:
        await ensure(connection, settings)
        outside = Fleet(settings, connection)
        if specs is not None:
            await outside.apply(specs)
        yield outside


async def read_stream(connection: Connection, stream: str) -> list[Stored]:
    """All messages of a stream, in order."""
    found: list[Stored] = []

    def deliver(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        at = delivery_of(reply)
        name = subject.decode("utf-8", "surrogateescape")
        found.append(Stored(stream, at.seq, name, payload, parsed(headers), at.time_ns))

    inbox = connection.inbox().decode()
    sid = await connection.tap(inbox, deliver)
    created = await connection.api(
        f"CONSUMER.CREATE.{stream}",
        {
            "stream_name": stream,
            "config": {
                "deliver_subject": inbox,
                "ack_policy": "none",
                "deliver_policy": "all",
                "mem_storage": True,
            },
        },
    )
    info = await connection.api(f"STREAM.INFO.{stream}")
    wanted = int(info["state"]["messages"])
    deadline_s = 10.0 + wanted / 1_000
    await until(lambda: len(found) >= wanted, deadline_s=deadline_s, what=f"{wanted} messages of {stream}")
    await connection.api(f"CONSUMER.DELETE.{stream}.{created['name']}")
    await connection.untap(sid)
    return found


def parsed(headers: bytes | None) -> dict[str, str]:
    """A header block as a dictionary."""
    lines = (headers or b"").decode().split("\r\n")[1:]
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
