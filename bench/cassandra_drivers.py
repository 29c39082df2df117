"""Ways to write and read the history's rows in Cassandra: drivers, event loops, bridges to asyncio, sizes.

    python bench/cassandra_drivers.py --contact-point 127.0.0.1:9042 [--json] [--rounds 5] [--only write]
        [--driver scylla=/venv/bin/python ...]

Each case is a process of its own with a uvloop loop; the cases of a round run one after another in an order
that changes, and the medians of the rounds are told. --driver adds the cases of another driver (scylla,
acsylla, casyncio, twisted), whose interpreter has it and uvloop installed: only this file is run there.
Makes the keyspace ``defender_bench_drivers`` (about 300 MB for reading, dropped at the end).

    rows/s      written or read          client, server   CPU us a row (server: on this machine only)
    late p99    lateness of a 1 ms ticker on the asyncio loop      answer p99   of a statement or page, ms

Protocol 4 unless said otherwise: cassandra-driver 3.30.1 and scylla-driver 3.29.12 lose the beginning of a
header of protocol 5 that a read of the socket cuts after 1-5 bytes, and close the connection (CRC mismatch).
TCP_NODELAY unless said otherwise: the driver sends pieces of 4 KiB, and without it the last waits 40 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import queue
import random
import re
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

KEYSPACE: Final = "defender_bench_drivers"
CHAMBERS: Final = 100
READ_ROWS: Final = 256
WRITE_SAMPLES, READ_SAMPLES = 50, 150
WARM_S: Final = 0.5
COLUMNS: Final = (
    *("chamber", "block", "seq", "layout", "ordinal", "epoch", "at_ns", "run", "reset"),
    *("charts", "samples", "carried", "shown"),
)
NEEDED: Final = "samples, charts, seq, ordinal, epoch, reset, carried"
INSERT: Final = f"INSERT INTO reports ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
CLASSES: Final = {
    "libev": "LibevConnection",
    "asyncio": "AsyncioConnection",
    "asyncore": "AsyncoreConnection",
    "twisted": "TwistedConnection",
}
INT, BIGINT, TINY = struct.Struct(">i").pack, struct.Struct(">q").pack, struct.Struct(">b").pack
RANGES: Final = ("rows_per_s", "client_us")
FAST: Final = (1.0, 0.5)
"""Switch intervals, ms, against the 5 ms of the interpreter."""
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """What is measured. *flight*: rows in flight of a write, chambers at a time of a read."""

    name: str
    kind: str = "write"
    driver: str = "cassandra"
    loop: str = "libev"
    way: str = "coalesced"
    protocol: int = 4
    batch: int = 1
    same_chamber: bool = False
    flight: int = 64
    bind: bool = False
    fetch: int = 64
    columns: str = NEEDED
    switch_ms: float = 5.0
    rows_per_s: float = 0.0
    nodelay: bool = True


W: Final = Case("write")
R: Final = Case("read", kind="read", flight=2)
CASES: Final = [
    Case("idle ticker", kind="idle"),
    replace(W, name="W libev, coalesced, 1 row x 64"),
    replace(W, name="W protocol 5", protocol=5),
    replace(W, name="W bind() in the driver", bind=True),
    *(replace(W, name=f"W loop {loop}", loop=loop) for loop in ("asyncio", "asyncore")),
    *(replace(W, name=f"W way {way}", way=way) for way in ("callback", "feeder", "executor", "concurrent")),
    *(replace(W, name=f"W 1 row x {n}", flight=n) for n in (8, 16, 32, 256)),
    *(replace(W, name=f"W batch {n} x {n * 4}", batch=n, flight=n * 4) for n in (5, 10)),
    *(
        replace(W, name=f"W batch {n} x {n * 4}, one chamber", batch=n, flight=n * 4, same_chamber=True)
        for n in (5, 10)
    ),
    *(replace(W, name=f"W batch 10 x {n}", batch=10, flight=n) for n in (10, 20, 80, 160)),
    replace(W, name="W batch 10 x 40, protocol 5", batch=10, flight=40, protocol=5),
    replace(W, name="W batch 10 x 40, callback", batch=10, flight=40, way="callback"),
    replace(W, name="W batch 10 x 40, feeder", batch=10, flight=40, way="feeder"),
    *(replace(W, name=f"W batch 10 x 40, switch {ms} ms", batch=10, flight=40, switch_ms=ms) for ms in FAST),
    *(replace(W, name=f"W 500/s, switch {ms} ms", rows_per_s=500, switch_ms=ms) for ms in (5.0, *FAST)),
    *(
        replace(W, name=f"W 500/s batch 10, switch {ms} ms", rows_per_s=500, batch=10, switch_ms=ms)
        for ms in (5.0, *FAST)
    ),
    replace(W, name="W 500/s, no TCP_NODELAY", rows_per_s=500, nodelay=False),
    replace(W, name="W 500/s batch 10, no TCP_NODELAY", rows_per_s=500, batch=10, nodelay=False),
    replace(W, name="W batch 10 x 40, no TCP_NODELAY", batch=10, flight=40, nodelay=False),
    *(replace(R, name=f"R fetch {n}", fetch=n) for n in (16, 32, 64, 128, 256)),
    *(replace(R, name=f"R fetch 64, {n} chambers", flight=n) for n in (1, 4, 8)),
    replace(R, name="R fetch 64, all columns", columns="*"),
    *(replace(R, name=f"R fetch {n}, protocol 5", fetch=n, protocol=5) for n in (64, 256)),
    replace(R, name="R fetch 64, executor", way="executor"),
    *(replace(R, name=f"R loop {loop}", loop=loop) for loop in ("asyncio", "asyncore")),
    *(
        replace(R, name=f"R fetch {n}, switch {ms} ms", fetch=n, switch_ms=ms)
        for n in (64, 256)
        for ms in FAST
    ),
]
OTHERS: Final = [
    replace(W, name="W {}"),
    replace(W, name="W {} batch 10 x 40", batch=10, flight=40),
    replace(R, name="R {} fetch 64"),
    replace(R, name="R {} fetch 256", fetch=256),
]


def make_rows(prefix: str, chamber: int, samples: int, first_seq: int, count: int) -> list[Row]:
    """Rows as the driver's types; blobs are half noise, half zeros (compressible as ours)."""
    chance = random.Random(chamber)

    def blob(size: int) -> bytes:
        return chance.randbytes(size // 2) + bytes(size - size // 2)

    sizes = [12 * samples, 35 * samples, 28 * samples]
    charts, columns, shown = (blob(size) for size in sizes)
    name = f"{prefix}-{chamber:03d}"
    return [
        (name, 0, seq, 1, seq, 7, 1_700_000_000 * 10**9, f"run-{seq}", None, charts, columns, None, shown)
        for seq in range(first_seq, first_seq + count)
    ]


def rows_to_write(same_chamber: bool) -> list[Row]:
    """4000 rows over all chambers: neighbours of different chambers, or each 10 of one."""
    rows = [make_rows("w", number, WRITE_SAMPLES, 1, 40) for number in range(CHAMBERS)]
    if same_chamber:
        return [row for start in range(0, 40, 10) for one in rows for row in one[start : start + 10]]
    return [one[index] for index in range(40) for one in rows]


class Landing:
    """Hands answers from the driver's thread to the loop: one wake-up for all that came meanwhile."""

    def __init__(self, coalesce: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.landed: deque[tuple[asyncio.Future[Any], Any, Exception | None]] = deque()
        self.is_scheduled, self.coalesce = False, coalesce

    def land(self, waiter: asyncio.Future[Any], rows: Any, error: Exception | None = None) -> None:
        if not self.coalesce:
            self.loop.call_soon_threadsafe(settle, waiter, rows, error)
            return
        self.landed.append((waiter, rows, error))
        if not self.is_scheduled:
            self.is_scheduled = True
            self.loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        self.is_scheduled = False
        while self.landed:
            settle(*self.landed.popleft())


def settle(waiter: asyncio.Future[Any], rows: Any, error: Exception | None) -> None:
    if waiter.done():
        return
    if error is None:
        waiter.set_result(rows)
    else:
        waiter.set_exception(error)


class DriverClient:
    """cassandra-driver, and those with its interface: scylla-driver, cassandra-asyncio-driver (casyncio)."""

    def __init__(self, case: Case, host: str, port: int) -> None:
        self.case, self.host, self.port = case, host, port
        self.query = import_module("cassandra.query")
        self.landing = Landing(case.way != "callback")
        self.threads = ThreadPoolExecutor(32)
        self.feed: queue.SimpleQueue[tuple[Any, asyncio.Future[Any]] | None] = queue.SimpleQueue()

    async def open(self) -> None:
        self.cluster, self.session = await asyncio.to_thread(connect, self.case, self.host, self.port)
        self.insert = self.session.prepare(INSERT)
        self.select = self.session.prepare(select(self.case))
        self.select.fetch_size = self.case.fetch
        if self.case.way == "feeder":
            threading.Thread(target=self.feed_driver, daemon=True).start()

    def bound(self, row: Row) -> Any:
        if self.case.bind:
            return self.insert.bind([self.query.UNSET_VALUE if value is None else value for value in row])
        chamber, block, seq, layout, ordinal, epoch, at_ns, run, _, charts, samples, _, shown = row
        bound = self.query.BoundStatement(self.insert)
        unset = self.query.UNSET_VALUE
        bound.values = [chamber.encode(), INT(block), BIGINT(seq), TINY(layout), BIGINT(ordinal)]
        bound.values += [BIGINT(epoch), BIGINT(at_ns), run.encode(), unset, charts, samples, unset, shown]
        return bound

    async def write(self, rows: Sequence[Row]) -> None:
        if self.case.way == "concurrent":
            concurrent = import_module("cassandra.concurrent")
            pairs = [[self.query.UNSET_VALUE if value is None else value for value in row] for row in rows]
            await asyncio.to_thread(
                concurrent.execute_concurrent_with_args, self.session, self.insert, pairs, 64
            )
            return
        if len(rows) == 1:
            statement = self.bound(rows[0])
        else:
            statement = self.query.BatchStatement(self.query.BatchType.UNLOGGED)
            for row in rows:
                statement.add(self.bound(row))
        await self.ask(statement)

    async def ask(self, statement: Any) -> None:
        """Executes what answers nothing."""
        if self.case.driver == "casyncio":
            await self.session.aexecute(statement)
        elif self.case.way == "executor":
            await self.landing.loop.run_in_executor(self.threads, self.session.execute, statement)
        else:
            waiter = self.landing.loop.create_future()
            if self.case.way == "feeder":
                self.feed.put((statement, waiter))
            else:
                self.start(statement, waiter)
            await waiter

    def start(self, statement: Any, waiter: asyncio.Future[Any]) -> None:
        land = self.landing.land
        self.session.execute_async(statement).add_callbacks(
            lambda rows: land(waiter, rows), lambda error: land(waiter, None, error)
        )

    def feed_driver(self) -> None:
        while (item := self.feed.get()) is not None:
            self.start(*item)

    async def read(self, chamber: str, landed: Callable[[int, float], None]) -> None:
        bound = self.select.bind((chamber, 0))
        started_s = time.perf_counter()
        if self.case.way == "executor":
            read = await self.landing.loop.run_in_executor(
                self.threads, lambda: list(self.session.execute(bound))
            )
            return landed(len(read), time.perf_counter() - started_s)
        if self.case.driver == "casyncio":
            read = await (await self.session.aexecute(bound)).aall()
            return landed(len(read), time.perf_counter() - started_s)
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        land = self.landing.loop.call_soon_threadsafe
        future = self.session.execute_async(bound)
        future.add_callbacks(
            lambda rows: land(arrived.put_nowait, rows), lambda error: land(arrived.put_nowait, error)
        )
        while True:
            rows = await arrived.get()
            if isinstance(rows, Exception):
                raise rows
            landed(len(rows), time.perf_counter() - started_s)
            if not future.has_more_pages:
                return None
            started_s = time.perf_counter()
            future.start_fetching_next_page()

    async def close(self) -> None:
        self.feed.put(None)
        await asyncio.to_thread(self.cluster.shutdown)
        self.threads.shutdown()


def connect(case: Case, host: str, port: int, keyspace: str | None = KEYSPACE) -> tuple[Any, Any]:
    """A cluster and a session of the driver, opened as ours are. Blocks."""
    name = "cassandra_asyncio.cluster" if case.driver == "casyncio" else "cassandra.cluster"
    driver, policies = import_module("cassandra.cluster"), import_module("cassandra.policies")
    cassandra = import_module("cassandra")
    reactor = getattr(import_module(f"cassandra.io.{case.loop}reactor"), CLASSES[case.loop])
    local = policies.DCAwareRoundRobinPolicy(local_dc="datacenter1")
    profile = driver.ExecutionProfile(
        load_balancing_policy=policies.TokenAwarePolicy(local),
        retry_policy=policies.FallthroughRetryPolicy(),
        consistency_level=cassandra.ConsistencyLevel.LOCAL_QUORUM,
        row_factory=import_module("cassandra.query").tuple_factory,
        request_timeout=20.0,
    )
    cluster = import_module(name).Cluster(
        [host],
        port,
        connection_class=reactor,
        protocol_version=case.protocol,
        sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(case.nodelay))],
        execution_profiles={driver.EXEC_PROFILE_DEFAULT: profile},
    )
    return cluster, cluster.connect(keyspace)


def select(case: Case) -> str:
    return f"SELECT {case.columns} FROM reports WHERE chamber = ? AND block = ? LIMIT {READ_ROWS}"


class AcsyllaClient:
    """acsylla: the C++ driver of ScyllaDB with a thread of its own outside the interpreter's lock."""

    def __init__(self, case: Case, host: str, port: int) -> None:
        self.case, self.host, self.port = case, host, port
        self.acsylla = import_module("acsylla")

    async def open(self) -> None:
        self.cluster = self.acsylla.create_cluster(
            [self.host], port=self.port, consistency="LOCAL_QUORUM", request_timeout=20.0
        )
        self.session = await self.cluster.create_session(keyspace=KEYSPACE)
        self.insert = await self.session.create_prepared(INSERT)
        self.select = await self.session.create_prepared(select(self.case))

    def bound(self, row: Row) -> Any:
        statement = self.insert.bind()
        for index, value in enumerate(row):
            if value is not None:
                statement.bind(index, value)
        return statement

    async def write(self, rows: Sequence[Row]) -> None:
        if len(rows) == 1:
            await self.session.execute(self.bound(rows[0]))
            return
        batch = self.acsylla.create_batch_unlogged()
        for row in rows:
            batch.add_statement(self.bound(row))
        await self.session.execute_batch(batch)

    async def read(self, chamber: str, landed: Callable[[int, float], None]) -> None:
        statement = self.select.bind(page_size=self.case.fetch)
        statement.bind_list([chamber, 0])
        while True:
            started_s = time.perf_counter()
            result = await self.session.execute(statement)
            rows = [row.as_tuple() for row in result]
            landed(len(rows), time.perf_counter() - started_s)
            if not result.has_more_pages():
                return
            statement.set_page_state(result.page_state())

    async def close(self) -> None:
        await self.session.close()


class Load:
    """Keeps *flight* busy until told to stop, and counts."""

    def __init__(self, case: Case, client: DriverClient | AcsyllaClient) -> None:
        self.case, self.client = case, client
        self.done = 0
        self.answers_s: list[float] = []
        self.late_s: list[float] = []
        self.is_over = False
        self.slot_s, self.index = time.perf_counter(), 0
        self.rows = rows_to_write(case.same_chamber) if case.kind == "write" else []

    def start(self) -> list[asyncio.Task[None]]:
        size = 256 if self.case.way == "concurrent" else self.case.batch
        works: list[Coroutine[Any, Any, None]] = [self.tick()]
        if self.case.kind == "write":
            works += [self.write(size) for _ in range(max(1, self.case.flight // size))]
        elif self.case.kind == "read":
            works += [self.read() for _ in range(self.case.flight)]
        return [asyncio.ensure_future(work) for work in works]

    async def tick(self) -> None:
        while not self.is_over:
            due_s = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            self.late_s.append(time.perf_counter() - due_s)

    async def write(self, size: int) -> None:
        while not self.is_over:
            first = self.index
            self.index = (first + size) % len(self.rows)
            if self.case.rows_per_s:
                slot_s = self.slot_s
                self.slot_s = max(slot_s, time.perf_counter() - 0.05) + size / self.case.rows_per_s
                await asyncio.sleep(max(0.0, slot_s - time.perf_counter()))
            rows = self.rows[first : first + size]
            started_s = time.perf_counter()
            await self.client.write(rows)
            self.landed(len(rows), time.perf_counter() - started_s)

    async def read(self) -> None:
        while not self.is_over:
            self.index += 1
            await self.client.read(f"r-{self.index % CHAMBERS:03d}", self.landed)

    def landed(self, rows: int, answer_s: float) -> None:
        self.done += rows
        self.answers_s.append(answer_s)


async def measure(case: Case, host: str, port: int, seconds: float, server_pid: int) -> dict[str, float]:
    """The figures of one case in one round."""
    sys.setswitchinterval(case.switch_ms / 1000)
    logging.getLogger("cassandra").setLevel(logging.ERROR)  # the server warns of each batch over 5 KiB
    kind = AcsyllaClient if case.driver == "acsylla" else DriverClient
    client = kind(case, host, port)
    await client.open()
    load = Load(case, client)
    tasks = load.start()
    await asyncio.sleep(WARM_S)
    load.done, started_s = 0, time.perf_counter()
    load.late_s.clear()
    load.answers_s.clear()
    client_s, server_s = time.process_time(), cpu_s(server_pid)
    await asyncio.sleep(seconds)
    took_s = time.perf_counter() - started_s
    client_s, server_s = time.process_time() - client_s, cpu_s(server_pid) - server_s
    rows, late_s, answers_s = max(load.done, 1), list(load.late_s), list(load.answers_s)
    load.is_over = True
    await asyncio.gather(*tasks)
    await client.close()
    return {
        "rows_per_s": load.done and rows / took_s,
        "client_us": 1e6 * client_s / rows,
        "server_us": 1e6 * server_s / rows,
        "late_p99_ms": 1e3 * percentile(late_s, 0.99),
        "late_max_ms": 1e3 * max(late_s),
        "answer_p50_ms": 1e3 * percentile(answers_s, 0.5),
        "answer_p99_ms": 1e3 * percentile(answers_s, 0.99),
    }


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))] if values else 0.0


def cpu_s(pid: int) -> float:
    """CPU of a process, s; 0 where it is not on this machine."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def listener(port: int) -> int:
    """The process that listens on a port of this machine, or 0."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(link) in inodes for link in folder.iterdir()):
                return int(folder.parent.name)
        except OSError:
            continue  # it ended meanwhile, or is another user's
    return 0


def fill(host: str, port: int) -> None:
    """Makes the table and the rows to read."""
    cluster, session = connect(W, host, port, None)
    try:
        session.execute(f"DROP KEYSPACE IF EXISTS {KEYSPACE}", timeout=60)
        session.execute(
            f"CREATE KEYSPACE {KEYSPACE} WITH replication = "
            "{'class': 'NetworkTopologyStrategy', 'datacenter1': 1}"
        )
        session.set_keyspace(KEYSPACE)
        session.execute(
            "CREATE TABLE reports (chamber text, block int, seq bigint, layout tinyint, ordinal bigint, "
            "epoch bigint, at_ns bigint, run text, reset text, charts blob, samples blob, carried blob, "
            "shown blob, PRIMARY KEY ((chamber, block), seq)) WITH CLUSTERING ORDER BY (seq DESC) AND "
            "compaction = {'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'HOURS', "
            "'compaction_window_size': '72'} AND default_time_to_live = 7776000"
        )
        insert, concurrent = session.prepare(INSERT), import_module("cassandra.concurrent")
        unset = import_module("cassandra.query").UNSET_VALUE
        for chamber in range(CHAMBERS):
            rows = make_rows("r", chamber, READ_SAMPLES, 1, READ_ROWS)
            pairs = [[unset if value is None else value for value in row] for row in rows]
            concurrent.execute_concurrent_with_args(session, insert, pairs, 64)
    finally:
        cluster.shutdown()


def drop(host: str, port: int) -> None:
    cluster, session = connect(W, host, port, None)
    try:
        session.execute(f"DROP KEYSPACE IF EXISTS {KEYSPACE}", timeout=60)
    finally:
        cluster.shutdown()


def run_case(case: Case, python: str, address: str, seconds: float, server_pid: int) -> dict[str, float]:
    """One case in a process of its own."""
    command = [python, __file__, "--contact-point", address, "--seconds", str(seconds)]
    command += ["--case", json.dumps(asdict(case)), "--server-pid", str(server_pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        told = done.stderr.strip().splitlines()[-1:] if isinstance(error, ValueError | IndexError) else error
        print(f"{case.name}: {told}", file=sys.stderr)
        return {}
    return figures


def compare(chosen: argparse.Namespace, host: str, port: int) -> list[dict[str, Any]]:
    """All rounds; for each case the medians."""
    pythons = {"cassandra": sys.executable} | dict(one.split("=", 1) for one in chosen.driver)
    cases = list(CASES)
    for driver in list(pythons)[1:]:
        is_loop = driver in CLASSES
        cases += [
            replace(
                case,
                name=case.name.format(driver),
                driver="cassandra" if is_loop else driver,
                loop=driver if is_loop else case.loop,
            )
            for case in OTHERS
        ]
    cases = [case for case in cases if re.search(chosen.only, f"{case.name} {case.kind}")]
    rounds: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}
    pid, chance = listener(port), random.Random(1)
    for number in range(chosen.rounds + 1):
        chance.shuffle(cases)
        for case in cases:
            driver = case.loop if case.loop in pythons else case.driver
            seconds = chosen.seconds if number else 0.5  # the first round only warms the server
            figures = run_case(case, pythons[driver], chosen.contact_point, seconds, pid)
            if number and figures:
                rounds[case.name].append(figures)
        print(f"round {number} of {chosen.rounds} done", file=sys.stderr)
    return [
        {"case": name, "rounds": len(seen)}
        | {key: statistics.median(one[key] for one in seen) for key in seen[0]}
        | {f"{key}_{end.__name__}": end(one[key] for one in seen) for key in RANGES for end in (min, max)}
        for name, seen in rounds.items()
        if seen
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Drivers for Cassandra, compared on the history's rows.")
    parser.add_argument("--contact-point", default="127.0.0.1:9042")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each case in each round")
    parser.add_argument("--only", default="", help="a pattern of the names, or write, read")
    parser.add_argument("--driver", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--keep", action="store_true", help="use and keep the keyspace")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--server-pid", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    host, _, port = chosen.contact_point.rpartition(":")
    if chosen.case:
        uvloop = import_module("uvloop")
        case = Case(**json.loads(chosen.case))
        print(json.dumps(uvloop.run(measure(case, host, int(port), chosen.seconds, chosen.server_pid))))
        return 0
    if not chosen.keep:
        fill(host, int(port))
    figures = compare(chosen, host, int(port))
    if not chosen.keep:
        drop(host, int(port))
    if chosen.json:
        print(json.dumps(figures))
        return 0
    heads = ["rows/s", "client", "server", "late p99", "late max", "answer p50", "answer p99"]
    heads += ["rows/s low", "high", "client low", "high"]
    print(f"{'case':36}rounds" + "".join(f"{head:>11}" for head in heads))
    for row in figures:
        print(
            f"{row['case']:36}{row['rounds']:6}"
            + "".join(f"{value:11.1f}" for value in list(row.values())[2:])
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
