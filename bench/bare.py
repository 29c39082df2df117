"""Loops to compare a defender with: they move the same messages over the same way, and compute nothing.

    python bench/bare.py ingest SETTINGS-JSON COUNT SIZE     pull, publish one message of SIZE bytes, ack
    python bench/bare.py read SETTINGS-JSON FIRST STEP       read partitions FIRST, FIRST+STEP, …

They use the defender's own connection, pulls, publishing and acknowledgements, which are faster than
nats-py's (see DESIGN.md): a slower baseline would flatter us. The last line of stdout is JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from random import Random

import msgspec
import uvloop

from runtime.bus import Connection, connect, frame_pub
from runtime.config import Settings
from runtime.history import jetstream
from runtime.intake import Intake
from runtime.ownership import Ownership
from runtime.ownership_record import Owner


class Ingest:
    """The bare loop of one worker over all partitions."""

    def __init__(self, connection: Connection, settings: Settings, count: int, size: int) -> None:
        self.connection, self.settings, self.left = connection, settings, count
        self.payload = b"x" * size
        self.inbox = connection.inbox()
        self.intakes: dict[int, Intake] = {}
        self.queue: list[tuple[Intake, int, str]] = []
        self.flights = 0
        self.scheduled = False
        self.over = asyncio.Event()

    async def run(self) -> None:
        settings, names = self.settings, self.settings.names
        ownership = Ownership(self.connection, settings, Owner("bare", "bare"), random=Random(1))
        acquired = await ownership.take_over(range(settings.partitions))
        window = settings.prefetch_reports_max // settings.partitions
        for one in acquired.values():
            self.intakes[one.partition] = Intake(
                one.partition, names.samples_stream(one.partition), one.consumer, one.position, window, 30.0
            )
            self.intakes[one.partition].inbox = b"%b.%d" % (self.inbox, one.partition)
        await self.connection.tap(f"{self.inbox.decode()}.*", self.deliver)
        self.pull(list(self.intakes.values()))
        await self.over.wait()

    def deliver(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if headers is not None and not reply:
            return
        _, _, partition, chamber = subject.split(b".", 3)
        intake, tokens = self.intakes[int(partition)], reply.split(b".")
        seq = int(tokens[5])
        if intake.took(seq, int(tokens[6]), int(tokens[8])):
            self.queue.append((intake, seq, self.settings.names.verdict(intake.partition, chamber.decode())))
        if not self.scheduled:
            self.scheduled = True
            asyncio.get_running_loop().call_soon(self.pump)

    def pump(self) -> None:
        self.scheduled = False
        while self.queue and self.flights < self.settings.batches_in_flight_max:
            most = self.settings.batch_reports_max
            batch, self.queue = self.queue[:most], self.queue[most:]
            messages = [(subject, f"bare:{seq}", self.payload) for _, seq, subject in batch]
            self.flights += 1
            stored = self.connection.start_all(messages)
            stored.add_done_callback(lambda done, batch=batch: self.land(done, batch))

    def land(self, stored: asyncio.Future[None], batch: list[tuple[Intake, int, str]]) -> None:
        stored.result()
        self.flights -= 1
        by_intake: dict[Intake, list[int]] = {}
        for intake, seq, _ in batch:
            by_intake.setdefault(intake, []).append(seq)
        frames = []
        for intake, seqs in by_intake.items():
            intake.done(seqs)
            ack = intake.ack()
            if ack is not None:
                frames.append(frame_pub(*ack))
        self.connection.write(b"".join(frames))
        self.pull(list(by_intake))
        self.left -= len(batch)
        if self.left <= 0:
            self.over.set()
        self.pump()

    def pull(self, intakes: list[Intake]) -> None:
        frames = [f for i in intakes for f in i.pulls()]
        if frames:
            self.connection.write(b"".join(frames))


async def read(connection: Connection, settings: Settings, first: int, step: int) -> tuple[int, float]:
    """Reads whole partitions, four at a time, and drops what it read; (messages, seconds)."""
    jetstream.decode_stored = lambda row: row  # type: ignore[assignment]
    history = jetstream.JetStreamHistory(connection, settings.names, settings.history_depth, 10.0)
    gate = asyncio.Semaphore(4)

    async def one(partition: int) -> int:
        async with gate:
            return (await history.load_partition(partition, lambda _: True)).reports

    begun = time.perf_counter()
    counts = await asyncio.gather(*(one(p) for p in range(first, settings.partitions, step)))
    return sum(counts), time.perf_counter() - begun


async def main(argv: list[str]) -> None:
    settings = msgspec.json.decode(argv[1], type=Settings)
    connection = await connect(settings, "bare")
    if argv[0] == "ingest":
        begun = time.perf_counter()
        await Ingest(connection, settings, int(argv[2]), int(argv[3])).run()
        print(json.dumps({"seconds": time.perf_counter() - begun}))
    else:
        messages, seconds = await read(connection, settings, int(argv[2]), int(argv[3]))
        print(json.dumps({"messages": messages, "seconds": seconds}))
    await connection.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
