"""The follower at 20,000 reports a second: how many cores it takes, and how far it falls behind.

Ready-made verdicts of ten charts, and the heads of as many reports, go straight into the streams.
"""

from __future__ import annotations

import asyncio
import time
import zlib

import msgspec
import uvloop
from figures import QUICK, figure
from fleet import connected, settings_for, until

from bench.lab.follower import Following
from bench.lab.tally import Followed
from runtime.config import Settings
from runtime.connection import Connection
from runtime.embedded import NatsServer
from runtime.frames import frame_pub
from runtime.names import Names
from runtime.resources import ensure
from runtime.wire import Verdict

RATE, SECONDS = (20_000, 2.0) if QUICK else (20_000, 8.0)
CHAMBERS, CHARTS, EVERY_S = 256, 10, 0.02
CORES_MAX = 0.5


def verdict(chamber: str, seq: int, at_ns: int) -> Verdict:
    return Verdict(
        chamber=chamber,
        seq=seq,
        ordinal=seq // CHAMBERS,
        epoch=1_740_816_000_123,
        spec=1,
        defender="defender-12",
        run=f"LOT{seq // CHAMBERS:05}",
        at=at_ns,
        position=seq - 1,
        charts=[f"particles-{i}" for i in range(CHARTS)],
        counts=[i % 7 for i in range(CHARTS)],
        units=[25.0] * CHARTS,
        u=[i % 7 / 25 for i in range(CHARTS)],
        centre=[0.11] * CHARTS,
        lcl=[0.0] * CHARTS,
        ucl=[0.31] * CHARTS,
        flags=[0] * CHARTS,
        phase=[2] * CHARTS,
        basis=[2_166_136_261] * CHARTS,
        stage=[1] * CHARTS,
    )


FIRST_SEQ, SOME_NS = 2**31, 1_740_816_000_000_000_000


class Chamber:
    """A chamber's frames, but for the verdict's numbers."""

    def __init__(self, names: Names, name: str) -> None:
        payload = msgspec.msgpack.encode(verdict(name, FIRST_SEQ, SOME_NS))
        self.report = frame_pub(names.sample(name).encode(), b"0" * 180)
        frame = frame_pub(names.verdict(names.partition_of(name), name).encode(), payload)
        self.head, _, rest = frame.partition(FIRST_SEQ.to_bytes(4, "big"))
        self.middle, _, self.tail = rest.partition(SOME_NS.to_bytes(8, "big"))

    def frames(self, seq: int, at_ns: int) -> tuple[bytes, ...]:
        numbers = seq.to_bytes(4, "big"), at_ns.to_bytes(8, "big")
        return self.report, self.head, numbers[0], self.middle, numbers[1], self.tail


class Source:
    """Publishes reports and their verdicts, each stored without an acknowledgement."""

    def __init__(self, connection: Connection, names: Names) -> None:
        self.number, self.crc = 0, 0
        self._connection = connection
        self._chambers = [Chamber(names, f"ETCH-{number:03}") for number in range(CHAMBERS)]
        self.crc = zlib.crc32(b"".join(self._chambers[0].frames(FIRST_SEQ, SOME_NS)))

    def upto(self, wanted: int) -> None:
        """So many in all."""
        frames: list[bytes] = []
        now_ns = time.time_ns()
        for number in range(self.number, wanted):
            frames += self._chambers[number % CHAMBERS].frames(FIRST_SEQ + number, now_ns)
        self.number = wanted
        self._connection.write(b"".join(frames))


async def _published(settings: Settings, following: Following) -> tuple[list[Followed], float, Source]:
    async with connected(settings) as connection:
        source, seen = Source(connection, settings.names), list[Followed]()
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < SECONDS:
            source.upto(int(passed * RATE))
            followed = following.progress()
            if not seen or seen[-1].at_ns != followed.at_ns:
                seen.append(followed)
            await asyncio.sleep(EVERY_S)
        await until(lambda: following.progress().verdicts == source.number, deadline_s=20.0)
        return seen, passed, source


def test_a_follower_takes_less_than_half_a_core_at_20000_reports_a_second() -> None:
    """And is never far behind."""

    async def measured() -> None:
        with NatsServer() as server:
            settings = settings_for(server, history_depth=512)
            async with connected(settings) as connection:
                await ensure(connection, settings)
            following = await Following(settings).start()
            try:
                seen, passed_s, source = await _published(settings, following)
                waits = await following.finish(20.0)
            finally:
                await following.stop()
        rate = source.number / passed_s
        steady = [one.cores for one in seen if one.at_ns > seen[0].at_ns + 1_000_000_000]
        cores = sum(steady) / max(len(steady), 1)
        behind = max(one.behind for one in seen)
        latency = waits.latency.quantiles_ms((0.5, 0.99))
        print(f"behind at most {behind} messages; waits p50 {latency[0]:.1f}, p99 {latency[1]:.1f} ms")
        assert waits.counts.verdicts == len(waits.wait_ms) == len(waits.reports_at_ns) == source.number
        assert (waits.counts.waiting, waits.counts.missed, waits.counts.doubled) == (0, 0, 0)
        figure(
            f"follower, {CHARTS} charts a report",
            f"{cores:.2f} cores at {rate:,.0f} reports/s",
            target=f"<= {CORES_MAX} at {RATE:,}",
            baseline=f"checksum {source.crc:08x}",
            met=cores <= CORES_MAX and rate > 0.95 * RATE,
        )

    uvloop.run(measured())
