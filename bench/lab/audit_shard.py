"""One pair of SAMPLES and VERDICTS, with its part of REJECTED and ALARMS, against the reports judged again.

SAMPLES ──► judged again ──► expected ──┐
VERDICTS, REJECTED, ALARMS ─────────────┴──► matched by the report's sequence ──► Found
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Struct

from bench.lab.audit_judging import Expected, Rejudge
from bench.lab.audit_reading import Extent, Reader, Stored
from bench.lab.audited import Found
from runtime.config import Settings
from runtime.frames import delivery_of, header
from runtime.judge import Rejection, Sample
from runtime.wire import decode_alarm, decode_verdict, msgpack_encoder

KEPT_VERDICTS_MAX: Final = 200_000
"""Expected verdicts kept whole until the fleet's come, 0.2 GB at 10 samples; of older ones only that they
are expected is known, and their verdicts, should they come, count as unknown."""
REPORT, WANTS_VERDICT, WANTS_REJECTION, WANTS_ALARM = 1, 2, 4, 8
HAS_VERDICT, HAS_REJECTION, HAS_ALARM = 16, 32, 64
"""Bits of what is known of a report."""


class Head(Struct, gc=False):
    """Of a verdict, what the audit looks at one by one."""

    seq: int
    epoch: int
    spec: int
    defender: str = ""
    position: int = 0


head_of = msgspec.msgpack.Decoder(Head)
_KEY_EPOCH, _KEY_DEFENDER, _KEY_POSITION = (
    msgpack_encoder.encode(name) for name in ("epoch", "defender", "position")
)


class AlarmHead(Struct, gc=False):
    """Of an alarm, the same."""

    chamber: str
    seq: int
    epoch: int
    spec: int
    defender: str


alarm_head_of = msgspec.json.Decoder(AlarmHead)


def _alarm_without_owner(payload: bytes) -> bytes:
    """An alarm's bytes by no defender, in epoch 0."""
    head = alarm_head_of.decode(payload)
    owner = f'"epoch":{head.epoch},"spec":{head.spec},"defender":"{head.defender}"'
    return payload.replace(owner.encode(), f'"epoch":0,"spec":{head.spec},"defender":""'.encode(), 1)


def _shown(subject: bytes) -> str:
    return subject.decode("utf-8", "replace")


def _here(seq: int, message: Stored) -> str:
    return f"sample {seq}, {_shown(message.subject)}"


def _without_owner(payload: bytes, head: Head) -> bytes:
    """A verdict's bytes as `Rejudge` makes them: by no defender, in epoch 0, at position 0. Where a name
    holds such bytes by chance this spoils it, and the two are compared field by field."""
    for key, value, nothing in (
        (_KEY_EPOCH, head.epoch, b"\x00"),
        (_KEY_DEFENDER, head.defender, b"\xa0"),
        (_KEY_POSITION, head.position, b"\x00"),
    ):
        payload = payload.replace(key + msgpack_encoder.encode(value), key + nothing, 1)
    return payload


def _differences(stored: Any, expected: Any, ignored: tuple[str, ...]) -> str:
    """The fields that differ, in words; "" for none."""
    return "; ".join(
        f"{name} {getattr(stored, name)!r}, expected {getattr(expected, name)!r}"
        for name in stored.__struct_fields__
        if name not in ignored and getattr(stored, name) != getattr(expected, name)
    )


@dataclass(frozen=True)
class Extents:
    samples: Extent
    verdicts: Extent
    rejected: Extent
    alarms: Extent
    now_ns: int


class _OfChamber:
    """The verdicts of one chamber so far."""

    __slots__ = ("count", "first_seq", "last_seq", "partition")

    def __init__(self, partition: int, seq: int) -> None:
        self.partition, self.first_seq, self.last_seq, self.count = partition, seq, 0, 0


class Shard:
    """One pair of SAMPLES and VERDICTS, with its part of REJECTED and ALARMS."""

    def __init__(
        self, settings: Settings, shard: int, extents: Extents, judge: Rejudge, found: Found
    ) -> None:
        self._names, self._extents, self._judge, self._found = settings.names, extents, judge, found
        self._partitions, self._shard = settings.names.partitions_of_shard(shard), shard
        self._begin = extents.samples.first_seq
        self._bits = bytearray(max(0, extents.samples.last_seq - self._begin + 1))
        self.reports = 0
        self._routes: dict[bytes, tuple[str, int]] = {}
        self._chambers: dict[bytes, _OfChamber] = {}
        self._epochs: dict[int, int] = {}
        self._verdicts: OrderedDict[int, tuple[str, bytes]] = OrderedDict()
        self._faded: dict[int, str] = {}
        """The subjects of expected verdicts that are no longer kept."""
        self._rejections: dict[int, Rejection] = {}
        self._alarms: dict[int, bytes] = {}
        self._alarm_routes: dict[str, int] = {}
        self._early: dict[int, list[tuple[Callable[[int, Stored], None], Stored]]] = {}
        """What was stored, by the servers' clocks, before the report that it is of."""
        self._revisions: set[int] = set()
        gaps = extents.samples.missing_at_begin + extents.samples.deleted
        self._is_whole = not gaps
        if gaps:
            found.add(
                "unknown",
                f"{extents.samples.stream} no longer holds {gaps} of its reports: what came of them is "
                "unknown, and verdicts cannot be made again; raise SAMPLES_MAX_AGE_S, or audit sooner",
                gaps,
            )

    async def run(self, readers: Sequence[Reader], on_reports: Callable[[int], None]) -> None:
        """Reads SAMPLES, VERDICTS, REJECTED and ALARMS to their ends; *on_reports* hears of each page."""
        samples, verdicts, rejected, alarms = readers
        others = ((verdicts, self._take_verdict), (rejected, self._take_rejected), (alarms, self._take_alarm))
        while page := await samples.page():
            self._expect(page)
            judged_ns = delivery_of(page[-1].reply).time_ns
            for reader, take in others:
                while (head_ns := await reader.head_ns()) is not None and head_ns <= judged_ns:
                    self._take_all(take, await reader.page())
            on_reports(self.reports)
        for reader, take in others:
            while page := await reader.page():
                self._take_all(take, page)
        self._end()

    # --- what should be -------------------------------------------------------------------------

    def _expect(self, page: Iterable[Stored]) -> None:
        samples = []
        for message in page:
            at = delivery_of(message.reply)
            route = self._routes.get(message.subject)
            if route is None:
                _, partition, name = message.subject.rsplit(b".", 2)
                route = self._routes[message.subject] = (
                    name.decode("utf-8", "surrogateescape"),
                    int(partition),
                )
            samples.append(Sample(*route, at.seq, at.time_ns, message.payload))
        expected = self._judge.judge(samples)
        bits, begin = self._bits, self._begin
        for sample in samples:
            bits[sample.seq - begin] |= REPORT
        self._keep(expected)
        self.reports += len(samples)
        self._found.add("reports", times=len(samples))
        self._found.add("samples", times=expected.samples)
        if self._early:
            for seq in [sample.seq for sample in samples if sample.seq in self._early]:
                for take, message in self._early.pop(seq):
                    take(seq, message)

    def _keep(self, expected: Expected) -> None:
        bits, begin = self._bits, self._begin
        for group, bit in (
            (expected.verdicts, WANTS_VERDICT),
            (expected.rejections, WANTS_REJECTION),
            (expected.alarms, WANTS_ALARM),
        ):
            for seq in group:
                bits[seq - begin] |= bit
        self._verdicts.update(expected.verdicts)
        self._rejections.update(expected.rejections)
        self._alarms.update(expected.alarms)
        while len(self._verdicts) > KEPT_VERDICTS_MAX:
            seq, (subject, _) = self._verdicts.popitem(last=False)
            self._faded[seq] = subject

    # --- what is --------------------------------------------------------------------------------

    def _take_all(self, take: Callable[[Stored], None], page: Iterable[Stored]) -> None:
        for message in page:
            take(message)

    def _pair(self, seq: int, take: Callable[[int, Stored], None], message: Stored) -> None:
        """Gives *message* to *take* when its report was judged; at once, as a rule."""
        at = seq - self._begin
        if 0 <= at < len(self._bits):
            if self._bits[at] & REPORT:
                take(seq, message)
            else:
                self._early.setdefault(seq, []).append((take, message))
        else:
            self._is_of_none(seq, message)

    def _is_of_none(self, seq: int, message: Stored) -> None:
        if self._is_whole:
            self._found.add("wrong", f"{_here(seq, message)}: {self._extents.samples.stream} never had it")
        # else its report is among those that are unknown already

    def _take_verdict(self, message: Stored) -> None:
        self._found.add("verdicts")
        try:
            head = head_of.decode(message.payload)
        except msgspec.MsgspecError as error:
            self._found.add("wrong", f"verdict at {_shown(message.subject)}: it cannot be read: {error}")
            return
        chamber = self._chambers.get(message.subject)
        if chamber is None:
            partition = message.subject.rsplit(b".", 2)[-2]
            chamber = self._chambers[message.subject] = _OfChamber(int(partition), head.seq)
        newest = self._epochs.get(chamber.partition, 0)
        if head.epoch < newest:
            self._found.add("stale", f"{_here(head.seq, message)}: epoch {head.epoch} after {newest}")
        else:
            self._epochs[chamber.partition] = head.epoch
        self._revisions.add(head.spec)
        at = head.seq - self._begin
        is_first = not (0 <= at < len(self._bits) and self._bits[at] & HAS_VERDICT)
        if is_first and head.seq < chamber.last_seq:
            self._found.add("out_of_order", f"{_here(head.seq, message)}: stored after {chamber.last_seq}")
        chamber.first_seq = min(chamber.first_seq, head.seq)
        chamber.last_seq = max(chamber.last_seq, head.seq)
        chamber.count += 1
        self._pair(head.seq, self._match_verdict, message)

    def _match_verdict(self, seq: int, message: Stored) -> None:
        at = seq - self._begin
        if self._bits[at] & HAS_VERDICT:
            self._found.add("doubled", f"{_here(seq, message)}: another verdict")
            return
        self._bits[at] |= HAS_VERDICT
        expected = self._verdicts.pop(seq, None)
        if expected is None:
            if self._faded.pop(seq, None) is not None:
                self._found.add("unknown", f"{_here(seq, message)}: its verdict came too late to be compared")
            else:
                self._found.add("wrong", f"{_here(seq, message)}: judged, though nothing of it can be")
            return
        subject, payload = expected
        if not self._is_whole:
            self._found.add("unknown")
        elif subject.encode() != message.subject:
            self._found.add("wrong", f"{_here(seq, message)}: expected at {subject}")
        elif _without_owner(message.payload, head_of.decode(message.payload)) != payload:
            self._compare(_here(seq, message), message.payload, payload)

    def _compare(
        self, here: str, stored: bytes, expected: bytes, decode: Callable[[bytes], Any] = decode_verdict
    ) -> None:
        try:
            found = decode(stored)
        except msgspec.MsgspecError as error:
            self._found.add("wrong", f"{here}: it cannot be read: {error}")
            return
        differences = _differences(found, decode(expected), ("defender", "epoch", "position"))
        if differences:
            self._found.add("wrong", f"{here}: {differences}")

    def _take_rejected(self, message: Stored) -> None:
        try:
            partition = int(header(message.headers, b"Tfdc-Partition") or b"")
            seq = int(header(message.headers, b"Tfdc-Seq") or b"")
        except ValueError:
            if not self._shard:
                self._found.add("rejected")
                self._found.add("wrong", f"rejection {message.subject!r}: it does not say of which sample")
            return
        if partition in self._partitions:
            self._found.add("rejected")
            self._pair(seq, self._match_rejected, message)

    def _match_rejected(self, seq: int, message: Stored) -> None:
        at = seq - self._begin
        if self._bits[at] & HAS_REJECTION:
            self._found.add("doubled", f"sample {seq}: rejected another time")
            return
        self._bits[at] |= HAS_REJECTION
        expected = self._rejections.pop(seq, None)
        if expected is None:
            self._found.add("wrong", f"sample {seq}: rejected, though nothing is wrong with it")
        elif (message.headers or b"").strip() != b"NATS/1.0\r\n" + expected.headers.strip():
            told = header(message.headers, b"Tfdc-Problems")
            self._found.add("wrong", f"sample {seq}: rejected for {told!r}, expected {expected.headers!r}")
        elif message.payload != expected.payload:
            self._found.add("wrong", f"sample {seq}: the rejected bytes are not those of the report")

    def _take_alarm(self, message: Stored) -> None:
        try:
            head = alarm_head_of.decode(message.payload)
        except msgspec.MsgspecError as error:
            if not self._shard:
                self._found.add("wrong", f"alarm {message.subject!r}: it cannot be read: {error}")
            return
        partition = self._alarm_routes.get(head.chamber)
        if partition is None:
            partition = self._alarm_routes[head.chamber] = self._names.partition_of(head.chamber)
        if partition in self._partitions:
            self._pair(head.seq, self._match_alarm, message)

    def _match_alarm(self, seq: int, message: Stored) -> None:
        at = seq - self._begin
        if self._bits[at] & HAS_ALARM:
            self._found.add("alarms_doubled", f"sample {seq}: another alarm")
            return
        self._bits[at] |= HAS_ALARM
        expected = self._alarms.pop(seq, None)
        if not self._is_whole:
            return
        if expected is None:
            self._found.add("wrong", f"{_here(seq, message)}: an alarm, though there is no cause")
        elif _alarm_without_owner(message.payload) != expected:
            self._compare(_here(seq, message), message.payload, expected, decode_alarm)

    # --- what is not ----------------------------------------------------------------------------

    def _end(self) -> None:
        for seq, messages in self._early.items():
            for _, message in messages:
                self._is_of_none(seq, message)
        if len(self._revisions) > 1:
            revisions = ", ".join(map(str, sorted(self._revisions)))
            self._found.say(f"specs of revisions {revisions} were used; the audit judges by one alone")
        self._end_verdicts()
        self._end_rejections()
        if self._alarms and self._is_whole:
            self._missing("alarms_lost", self._extents.alarms, list(self._alarms), "no alarm")

    def _end_verdicts(self) -> None:
        missing = self._faded | {seq: subject for seq, (subject, _) in self._verdicts.items()}
        if not missing:
            return
        extent, cut, lost = self._extents.verdicts, 0, []
        for seq, subject in sorted(missing.items()):
            bits = self._bits[seq - self._begin]
            if bits & HAS_REJECTION and not bits & WANTS_REJECTION:
                continue  # it was rejected, which is wrong, and counted
            chamber = self._chambers.get(subject.encode())
            full = chamber is not None and 0 < extent.per_subject <= chamber.count
            if chamber is not None and full and seq < chamber.first_seq:
                cut += 1
            else:
                lost.append(seq)
        self._found.add(
            "unknown",
            f"{extent.stream} keeps {extent.per_subject} verdicts of a chamber: {cut} older ones are "
            "unknown; raise max_msgs_per_subject for the run",
            cut,
        )
        if lost:
            self._missing("lost", extent, lost, "no verdict")

    def _end_rejections(self) -> None:
        if not self._rejections:
            return
        groups: dict[str, list[int]] = {"lost": [], "wrong": []}
        for seq in self._rejections:
            bits = self._bits[seq - self._begin]
            if not bits & (WANTS_VERDICT | HAS_VERDICT):
                groups["lost"].append(seq)
            elif bits & HAS_VERDICT:
                groups["wrong"].append(seq)
        for count, seqs in groups.items():
            if seqs:
                self._missing(count, self._extents.rejected, seqs, "no rejection")

    def _missing(self, count: str, extent: Extent, seqs: list[int], what: str) -> None:
        """Counts what *extent*'s stream lacks of these reports: as unknown, where its limits may have
        dropped it."""
        if extent.may_have_dropped(self._extents.now_ns):
            gone = extent.missing_at_begin
            cause = f"{extent.stream} no longer holds its first {gone} messages"
            self._found.add("unknown", f"{cause}: {len(seqs)} times {what}; raise its limits", len(seqs))
            return
        for seq in seqs:
            self._found.add(count, f"sample {seq} of {self._extents.samples.stream}: {what}")
