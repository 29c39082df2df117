"""A verdict as a row of Cassandra and back: byte for byte, and for a rebuild all that it needs."""

from __future__ import annotations

import os
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from drawn import SCENES

from runtime.arena import WHOLE, Arena, Shape
from runtime.cache import Cache
from runtime.errors import HistoryDiffers
from runtime.examine import Limits
from runtime.flight import FlightLog
from runtime.history import rows
from runtime.history.rows import SAMPLE_BYTES, Row, pack
from runtime.judge import Judge, Sample
from runtime.names import Names
from runtime.rebuild import restore_chamber
from runtime.specs import designed
from runtime.stored import StoredVerdict, decode_stored
from runtime.wire import decode_verdict
from tests.load import SPECS, reports

NAMES = Names(partitions=1)


def arena_of(slots: int = 600, chambers: int = 30) -> Arena:
    arena = Arena(os.memfd_create("rows"), Shape(1, slots, chambers, 32, flights=2, reports=8, samples=64))
    arena.partitions[0] = WHOLE
    return arena


def published(count: int, *, seed: int = 5) -> list[bytes]:
    """Verdicts of charts of each baseline, with absences, resets, marks and alarms, in order."""
    cache = Cache(arena_of(), NAMES, designed(SPECS), 3, 64)
    judge = Judge(cache, FlightLog(cache.arena), Limits(10_000, 1e9, 1e9), "defender-0")
    judge.epochs[0], judge.positions[0] = 7, 0
    found = []
    for seq, (chamber, payload) in zip(range(1, count + 1), reports(seed, 6), strict=False):
        if cache.get(chamber) is None:
            cache.loaded([cache.add(chamber, 0)])
        batch = judge.judge([Sample(chamber, 0, seq, 10**18 + seq, payload)])
        if batch.flight is not None:
            judge.flights.confirm(batch.flight)
        found += [message[2] for message in batch.verdicts]
    return found


PAYLOADS = published(700)


def test_a_row_gives_back_the_verdict_byte_for_byte() -> None:
    resets = alarms = 0
    for payload in PAYLOADS:
        row = pack(payload)
        assert rows.payload(row) == payload
        assert rows.verdict(row) == decode_verdict(payload)
        resets, alarms = resets + (row.reset is not None), alarms + (row.carried is not None)
    assert resets > 1
    assert alarms > 50


@pytest.mark.parametrize("scene", SCENES)
def test_the_same_with_cusum_ewma_prediction_and_lots_that_differ(scene: str) -> None:
    for verdict in SCENES[scene]().verdicts:
        payload = msgspec.msgpack.encode(verdict)
        back = rows.verdict(pack(payload))
        assert back == verdict


def test_a_rebuild_from_rows_leaves_the_memory_that_one_from_verdicts_leaves() -> None:
    """Also without the columns that only people read: a rebuild does not ask for them."""
    sources: list[dict[str, list[StoredVerdict]]] = [{}, {}]
    for payload in PAYLOADS:
        row = pack(payload)._replace(at_ns=0, run="", shown=b"\x80")
        for source, stored in zip(sources, (decode_stored(payload), rows.stored(row)), strict=True):
            source.setdefault(stored.chamber, []).append(stored)
            assert (stored.seq, stored.ordinal, stored.epoch) == (row.seq, row.ordinal, row.epoch)
    memories = [memory_of(source) for source in sources]
    for part in ("state", "sums", "carried", "window"):
        one, other = (np.ascontiguousarray(getattr(memory, part)).tobytes() for memory in memories)
        assert one == other, part


def memory_of(source: dict[str, list[StoredVerdict]]) -> Arena:
    cache = Cache(arena_of(), NAMES, designed(SPECS), 3, 64)
    for chamber, stored in source.items():
        restore_chamber(cache, chamber, 0, stored)
    return cache.arena


def test_the_columns_of_samples_lie_as_documented() -> None:
    """Little-endian, one after another, 35 bytes a chart, whatever the machine's own order is."""
    payload = next(payload for payload in PAYLOADS if len(pack(payload).samples) == 4 * SAMPLE_BYTES)
    row, verdict = pack(payload), decode_verdict(payload)
    kinds = [("counts", "<f8"), ("units", "<f8"), ("centre", "<f8"), ("basis", "<u4"), ("stage", "<u4")]
    at = 0
    for name, kind in [*kinds, ("flags", "<u2"), ("phase", "u1")]:
        column = np.frombuffer(row.samples, dtype=kind, count=4, offset=at)
        at += column.nbytes
        assert column.tolist() == [value or 0 for value in getattr(verdict, name)], name
    assert at == len(row.samples)


def test_a_layout_that_is_not_known_is_refused_with_the_report_and_what_to_do() -> None:
    row = pack(PAYLOADS[0])._replace(layout=2)
    for read in (rows.stored, rows.payload):
        with pytest.raises(
            HistoryDiffers, match=rf"report {row.seq} of chamber '{row.chamber}'.*layout 2.*newer"
        ):
            read(row)


@pytest.mark.parametrize("wrong", [{"units": [1.0]}, {"centre": [0.5] * 4, "phase": [0] * 4}, {"flags": []}])
def test_a_verdict_that_no_defender_publishes_is_not_stored(wrong: dict[str, Any]) -> None:
    payload = next(payload for payload in PAYLOADS if len(pack(payload).samples) == 4 * SAMPLE_BYTES)
    with pytest.raises(HistoryDiffers, match="cannot be stored"):
        pack(msgspec.msgpack.encode({**msgspec.msgpack.decode(payload), **wrong}))


def test_rows_of_any_numbers_come_back() -> None:
    """Counts, units, centres at the ends of what a float holds; numbers of reports beyond 32 bits."""
    rng = Random(3)
    base = msgspec.msgpack.decode(next(p for p in PAYLOADS if len(pack(p).samples) == 4 * SAMPLE_BYTES))
    for _ in range(200):
        counts = [rng.choice([0, 1, 2**31, 2**53]) for _ in range(4)]
        units = [rng.choice([5e-324, 1e-9, 1.0, 1.7e308]) for _ in range(4)]
        phase = [rng.choice([0, 1, 2]) for _ in range(4)]
        centre = [rng.choice([0.0, 5e-324, 1e300]) if at else None for at in phase]
        fields = {"seq": 2**53, "ordinal": 2**40, "epoch": 2**52, "counts": counts, "units": units}
        payload = msgspec.msgpack.encode(base | fields | {"phase": phase, "centre": centre})
        assert rows.payload(pack(payload)) == payload
        assert isinstance(pack(payload), Row)
