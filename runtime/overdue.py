"""What a failure may have left undone of samples whose verdict is stored: their alarms and rejections.

A sample that comes again although its verdict is stored was not acknowledged: whoever judged it died
between the verdict and the acknowledgement, perhaps before the alarm. The alarm is made anew from the
stored verdict and published if the chamber's last alarm is older.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.config import Settings
from runtime.connection import Connection
from runtime.examine import Limits, examine
from runtime.frames import Message
from runtime.history import History
from runtime.jetstream import last_messages
from runtime.judge import Rejection, Sample, message_id, rejection
from runtime.names import Names
from runtime.wire import decode_alarm, encode_alarm


async def overdue_alarms(
    connection: Connection, history: History, settings: Settings, skipped: Sequence[Sample]
) -> list[Message]:
    """Alarms of *skipped* samples that ALARMS does not have."""
    names, timeout_s = settings.names, settings.request_timeout_s
    by_chamber: dict[str, list[Sample]] = {}
    for sample in skipped:
        by_chamber.setdefault(sample.chamber, []).append(sample)
    subjects = [names.alarm(chamber) for chamber in by_chamber]
    last = {
        alarm.chamber: alarm.seq
        for alarm in map(decode_alarm, await last_messages(connection, names.alarms, subjects, timeout_s))
    }
    alarms: list[Message] = []
    for chamber, samples in by_chamber.items():
        by_seq = {sample.seq: sample for sample in samples if sample.seq > last.get(chamber, 0)}
        if by_seq:
            for verdict in await history.verdicts_of(samples[0].partition, chamber, by_seq):
                payload = encode_alarm(verdict)
                if payload is not None:
                    alarms.append((names.alarm(chamber), message_id(names, by_seq[verdict.seq]), payload))
    return alarms


def overdue_rejections(skipped: Sequence[Sample], limits: Limits, names: Names) -> list[Rejection]:
    """Rejections of *skipped* samples of which only a part was judged; the stream drops repeats."""
    rejections = []
    for sample in skipped:
        problems = examine(sample, limits).problems
        if problems:
            rejections.append(rejection(sample, problems, names))
    return rejections
