"""What a failure may have left undone of samples whose verdict is stored: their alarms and rejections.

A sample that comes again although its verdict is stored was not acknowledged: whoever judged it died
between the verdict and the acknowledgement, perhaps before the alarm. The alarm is made anew from the
stored verdict and published if the chamber's last alarm is older.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.alarms import encode_alarm
from runtime.config import Settings
from runtime.examine import Limits, examine
from runtime.frames import Message
from runtime.history import History
from runtime.jetstream import CallsSeveral, last_messages
from runtime.judge import Rejection, Sample, message_id_prefix, rejection
from runtime.names import Names
from runtime.wire import decode_alarm


async def overdue_alarms(
    connection: CallsSeveral, history: History, settings: Settings, chambers: Mapping[str, tuple[int, int]]
) -> list[Message]:
    """The alarms that ALARMS lacks of these chambers' stored verdicts.

    *chambers*: name -> (partition, the position up to which nothing is overdue). A chamber's alarms are
    published in order, so its newest one tells that none before it is missing.
    """
    names, timeout_s = settings.names, settings.request_timeout_s
    subjects = [names.alarm(chamber) for chamber in chambers]
    newest = {
        alarm.chamber: alarm.seq
        for alarm in map(decode_alarm, await last_messages(connection, names.alarms, subjects, timeout_s))
    }
    alarms: list[Message] = []
    for chamber, (partition, position) in chambers.items():
        after = max(position, newest.get(chamber, 0))
        for verdict in await history.verdicts_after(partition, chamber, after):
            payload = encode_alarm(verdict)
            if payload is not None:
                identity = f"{message_id_prefix(names, partition)}{verdict.seq}"
                alarms.append((names.alarm(chamber), identity, payload))
    return alarms


def overdue_rejections(skipped: Sequence[Sample], limits: Limits, names: Names) -> list[Rejection]:
    """Rejections of *skipped* samples of which only a part was judged; the stream drops repeats."""
    rejections = []
    for sample in skipped:
        problems = examine(sample, limits).problems
        if problems:
            rejections.append(rejection(sample, problems, names))
    return rejections
