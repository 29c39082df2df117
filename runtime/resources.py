"""The streams and buckets of a fleet: made when missing, checked when there.

`wanted` says what each must be; `differences` compares it with what the server has. A difference that
would break a promise (an expiring ownership record, verdicts without direct gets) is an error that
names the setting; what an operator may tune (age, size, replicas, storage) is logged and left alone.

With up to 64 partitions the samples' stream spreads the chambers over the partitions itself; beyond that
the account's mapping does, which only the server's operator can write: `ensure` tries it out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from runtime import log
from runtime.bus import ApiError, Connection, NotFound, within
from runtime.config import History
from runtime.errors import DefenderError, ResourceDiffers, SettingsError
from runtime.names import Names

if TYPE_CHECKING:
    from runtime.config import Settings

CHART_SPECS_KEPT: Final = 16
_KV: Final = "KV_"
_TUNED: Final = ("max_age", "max_bytes", "max_msgs", "num_replicas", "storage", "compression", "max_msg_size")
_PROBES: Final = 16
_LOG = log.get("resources")

Config = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """What one field of a stream must be: a test of the found value, and what to do when it fails."""

    field: str
    holds: Callable[[Any], bool]
    wanted: str
    remedy: str


@dataclass(frozen=True)
class Wanted:
    """One stream: what it is called for people, the configuration to make it with, the rules it must obey."""

    title: str
    config: Config
    rules: tuple[Rule, ...]
    numbers_a_second: float = 0.0
    """Of a stream whose numbers must never come again, even when it is made anew: they begin at the time in
    ms (1e3) or µs (1e6), which is beyond whatever fewer writes a second have reached. 0: they begin at 1."""

    @property
    def name(self) -> str:
        return str(self.config["name"])


def wanted(settings: Settings) -> list[Wanted]:
    """Every stream and bucket that the fleet needs. Pure."""
    names = settings.names
    shards = range(names.shards)
    return [
        *(_samples(settings, shard) for shard in shards),
        *(_verdicts(settings, shard) for shard in shards),
        _log_stream(settings, names.alarms, names.alarm(), settings.alarms_max_age_s, "STREAM_ALARMS"),
        _log_stream(settings, names.rejected, names.reject(), settings.rejected_max_age_s, "STREAM_REJECTED"),
        _bucket(settings, settings.nats_kv_stable_ids, settings.lease_ttl_s, "LEASE_TTL_S", markers=True),
        _bucket(settings, settings.nats_kv_heartbeats, settings.heartbeat_ttl_s, "HEARTBEAT_TTL_S"),
        # Its revisions are epochs, by which consumers are named and a worker knows what it has in memory.
        replace(
            _bucket(settings, settings.nats_kv_assignments, 0, "NATS_KV_ASSIGNMENTS"), numbers_a_second=1e3
        ),
        _bucket(settings, settings.nats_kv_leader, settings.leader_ttl_s, "LEADER_TTL_S", markers=True),
        _bucket(settings, settings.nats_kv_chart_specs, 0, "NATS_KV_CHART_SPECS", history=CHART_SPECS_KEPT),
    ]


def differences(found: Config, want: Wanted) -> list[str]:
    """What of *found*, the server's configuration, breaks a rule: field, values and remedy in a line each."""
    return [
        f"{want.title}: {rule.field} is {_shown(found.get(rule.field))}, must be {rule.wanted}; {rule.remedy}"
        for rule in want.rules
        if not rule.holds(found.get(rule.field))
    ]


def tuned(found: Config, want: Wanted) -> dict[str, Any]:
    """The fields that an operator has set otherwise, and may."""
    ruled = {rule.field for rule in want.rules}
    return {
        field: found[field]
        for field in _TUNED
        if field in found and field not in ruled and found[field] != want.config.get(field, found[field])
    }


async def ensure(connection: Connection, settings: Settings) -> None:
    """Make what is missing, check what is there.

    Raises ResourceDiffers, SettingsError, ServerStorageFull, JetStreamOff, NoAnswer, Disconnected.
    """
    timeout_s = settings.request_timeout_s
    async with asyncio.TaskGroup() as group:
        ensured = [group.create_task(_outcome(connection, want, timeout_s)) for want in wanted(settings)]
    problems = [problem for task in ensured if (problem := task.result()) is not None]
    if len(problems) > 1 and all(isinstance(problem, ResourceDiffers) for problem in problems):
        raise ResourceDiffers(" | ".join(map(str, problems)))
    if problems:
        raise problems[0]
    if settings.names.shards > 1:
        await _check_mapping(connection, settings.names, timeout_s)


async def _outcome(connection: Connection, want: Wanted, timeout_s: float) -> DefenderError | None:
    """The error instead of raising it: one stream's problem shows as itself, not as a group's."""
    try:
        await _ensure(connection, want, timeout_s)
    except DefenderError as error:
        return error
    return None


async def _ensure(connection: Connection, want: Wanted, timeout_s: float) -> None:
    try:
        answer = await connection.api(f"STREAM.INFO.{want.name}", timeout_s=timeout_s)
    except NotFound:
        answer = await _create(connection, want, timeout_s)
    found = answer["config"]
    problems = differences(found, want)
    if problems:
        raise ResourceDiffers(" | ".join(problems))
    changed = tuned(found, want)
    if changed:
        _LOG.info("stream is tuned by its operator", stream=want.name, **changed)


def made_at(want: Wanted, now_s: float) -> Config:
    """The configuration to make the stream with at *now_s* of the wall clock. Pure."""
    first = int(now_s * want.numbers_a_second)
    return want.config | {"first_seq": first} if first else want.config


async def _create(connection: Connection, want: Wanted, timeout_s: float) -> dict[str, Any]:
    config = made_at(want, time.time())
    try:
        answer = await connection.api(f"STREAM.CREATE.{want.name}", config, timeout_s=timeout_s)
    except ApiError as error:
        if error.err_code == 10058:  # name in use: another defender made it in between
            return await connection.api(f"STREAM.INFO.{want.name}", timeout_s=timeout_s)
        if error.err_code == 10065:
            raise ResourceDiffers(
                f"{want.title}: another stream listens on {', '.join(want.config['subjects'][:3])} already; "
                "delete that stream, or choose another SUBJECT_ROOT"
            ) from error
        if error.err_code in (10005, 10074):
            replicas = want.config["num_replicas"]
            raise SettingsError(
                "STREAM_REPLICAS", f"the NATS cluster cannot hold {replicas} copies of {want.title}: {error}"
            ) from error
        raise
    _LOG.info("created", stream=want.name)
    return answer


async def _check_mapping(connection: Connection, names: Names, timeout_s: float) -> None:
    """Publishes samples that no stream keeps (they expect a stream of another name) and sees who refuses."""
    for probe in (f"mapping-check-{number}" for number in range(_PROBES)):
        subject, expected = names.sample(probe), names.samples_stream(names.partition_of(probe))
        reply = await within(
            connection.ask(subject, headers=b"Nats-Expected-Stream:none\r\n"), timeout_s, subject
        )
        found = "no stream" if reply.status == b"503" else msgspec.json.decode(reply.payload).get("stream")
        if found != expected:
            mapping = f'"{names.root}.sample.*": "{_destination(names)}"'
            raise ResourceDiffers(
                f"account mapping: {subject} reaches {found}, must reach {expected} with {names.partitions} "
                f"PARTITIONS; configure in nats-server, for our account: mappings {{ {mapping} }}"
            )


def _destination(names: Names) -> str:
    return f"{names.root}.in.{{{{partition({names.partitions},1)}}}}.{{{{wildcard(1)}}}}"


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _stream(settings: Settings, name: str, subjects: list[str], **more: Any) -> Config:
    return {
        "name": name,
        "subjects": subjects,
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "num_replicas": settings.stream_replicas,
        "duplicate_window": _ns(settings.duplicate_window_s),
        "allow_direct": True,
        **more,
    }


def _same(field: str, value: Any, remedy: str) -> Rule:
    return Rule(field, lambda found: (found or value.__class__()) == value, _shown(value), remedy)


def _at_least(field: str, value: int, remedy: str) -> Rule:
    """0 and -1 mean without limit to the server."""
    return Rule(field, lambda found: (found or -1) < 0 or found >= value, f">= {_shown(value)}", remedy)


def _window(settings: Settings, name: str) -> Rule:
    window_ns = _ns(settings.duplicate_window_s)
    return Rule(
        "duplicate_window",
        lambda found: (found or 0) >= window_ns,
        f">= {_shown(window_ns)}",
        f"nats stream edit {name} --dupe-window={settings.duplicate_window_s}s, or lower DUPLICATE_WINDOW_S",
    )


def _common(settings: Settings, name: str, config: Config, setting: str) -> tuple[Rule, ...]:
    other = f"choose another {setting} or SUBJECT_ROOT, or delete the stream"
    return (
        Rule(
            "subjects",
            lambda found: sorted(found or []) == sorted(config["subjects"]),
            _shown(config["subjects"]),
            f"{other}; PARTITIONS must be what it was when the stream was made",
        ),
        _same("retention", "limits", other),
        Rule("sealed", lambda found: not found, "false", other),
        Rule("no_ack", lambda found: not found, "false", f"nats stream edit {name} --ack"),
        _window(settings, name),
    )


def _samples(settings: Settings, shard: int) -> Wanted:
    names = settings.names
    partitions = names.partitions_of_shard(shard)
    name = names.samples_stream(partitions[0])
    more: Config = {"max_age": _ns(settings.samples_max_age_s)}
    rules: tuple[Rule, ...] = ()
    subjects = [names.incoming(partition) for partition in partitions]
    if names.shards == 1:
        subjects = [names.sample("*")]
        more["subject_transform"] = {"src": names.sample("*"), "dest": _destination(names)}
        remedy = "set PARTITIONS to what it was when the stream was made, or delete the stream"
        rules = (_same("subject_transform", more["subject_transform"], remedy),)
    config = _stream(settings, name, subjects, **more)
    enough = _at_least("max_consumers", 2 * len(partitions), f"nats stream edit {name} --max-consumers=-1")
    common = _common(settings, name, config, "STREAM_SAMPLES")
    # Cassandra may outlive the server's storage, and reports numbered again would pass for judged.
    numbers_a_second = 1e6 if settings.history is History.CASSANDRA else 0.0
    return Wanted(f"stream {name}", config, (*common, *rules, enough), numbers_a_second)


def _verdicts(settings: Settings, shard: int) -> Wanted:
    names = settings.names
    partitions = names.partitions_of_shard(shard)
    name = names.verdicts_stream(partitions[0])
    subjects = [names.verdict(partition) for partition in partitions]
    if names.shards == 1:
        subjects = [f"{names.root}.verdict.*.*"]
    depth = settings.history_depth
    config = _stream(settings, name, subjects, max_msgs_per_subject=depth)
    deeper = f"nats stream edit {name} --max-msgs-per-subject={depth}, or lower HISTORY_DEPTH"
    rules = (
        _at_least("max_msgs_per_subject", depth, deeper),
        _same("allow_direct", True, f"nats stream edit {name} --allow-direct"),
    )
    return Wanted(
        f"stream {name}",
        config,
        (*_common(settings, name, config, "STREAM_VERDICTS"), *_appended(name), *rules),
    )


def _appended(name: str) -> tuple[Rule, ...]:
    """Streams that we write: a full one must drop its oldest, not refuse."""
    return (_same("discard", "old", f"nats stream edit {name} --discard=old"),)


def _log_stream(settings: Settings, name: str, subject: str, max_age_s: int, setting: str) -> Wanted:
    config = _stream(settings, name, [subject], max_age=_ns(max_age_s))
    return Wanted(f"stream {name}", config, (*_common(settings, name, config, setting), *_appended(name)))


def _bucket(
    settings: Settings, bucket: str, ttl_s: float, setting: str, *, history: int = 1, markers: bool = False
) -> Wanted:
    """A key-value bucket is the stream ``KV_<bucket>``. *markers*: the server tells of keys that expire."""
    ttl_ns = _ns(ttl_s)
    subjects = [f"$KV.{bucket}.>"]
    config: Config = {
        "name": f"{_KV}{bucket}",
        "subjects": subjects,
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": settings.stream_replicas,
        "duplicate_window": min(ttl_ns, _ns(120)) or _ns(120),
        "max_msgs_per_subject": history,
        "max_age": ttl_ns,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
    }
    change = f"nats stream edit {_KV}{bucket}"
    other = f"choose another bucket name, or delete the bucket {bucket}"
    rules = [
        _same("subjects", subjects, other),
        _same("retention", "limits", other),
        _same("max_age", ttl_ns, f"{change} --max-age={ttl_s:g}s, or correct {setting}"),
        _same("allow_direct", True, f"{change} --allow-direct"),
        _at_least("max_msgs_per_subject", history, f"{change} --max-msgs-per-subject={history}"),
    ]
    if markers:
        config |= {"allow_msg_ttl": True, "subject_delete_marker_ttl": max(ttl_ns, _ns(1))}
        rules.append(
            Rule(
                "subject_delete_marker_ttl",
                lambda found: (found or 0) > 0,
                _shown(config["subject_delete_marker_ttl"]),
                f"{change} --allow-msg-ttl --subject-del-markers-ttl={ttl_s:g}s; it needs nats-server 2.11",
            )
        )
    return Wanted(f"bucket {bucket}", config, tuple(rules))


def _shown(value: Any) -> str:
    """For people: long times in seconds, long lists cut."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "not set"
    if isinstance(value, int) and value >= 100_000_000:
        return f"{value / 1e9:g} s"
    if isinstance(value, list) and len(value) > 3:
        return f"{', '.join(map(str, value[:3]))} … ({len(value)})"
    return str(value)
