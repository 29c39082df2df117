"""The streams and buckets of a fleet: made when missing, checked when there.

`wanted` says what each must be; `differences` compares it with what the server has. A difference that
would break a promise (an expiring ownership record, a stream without atomic batches) is an error that
names the setting; what an operator may tune (age, size, replicas, storage) is logged and left alone.

With up to 64 partitions the samples' stream spreads the chambers over the partitions itself; beyond that
the account's mapping does, which only the server's operator can write: `ensure` tries it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from runtime import log
from runtime.bus import ApiError, Connection, NotFound
from runtime.errors import DefenderError, JetStreamOff, ResourceDiffers, SettingsError
from runtime.names import Names

if TYPE_CHECKING:
    from runtime.config import Settings

LEADER_TTL_S: Final = 10
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
        _bucket(settings, settings.nats_kv_assignments, 0, "NATS_KV_ASSIGNMENTS"),
        _bucket(settings, settings.nats_kv_leader, LEADER_TTL_S, "NATS_KV_LEADER"),
        _bucket(settings, settings.nats_kv_chart_specs, 0, "NATS_KV_CHART_SPECS", history=CHART_SPECS_KEPT),
    ]


def differences(found: Config, want: Wanted) -> list[str]:
    """What of *found*, the server's configuration, breaks a rule; each line names field, values and remedy."""
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
    problems = [task.result() for task in ensured if task.result() is not None]
    if problems:
        first = problems[0]
        assert first is not None
        raise first
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


async def _create(connection: Connection, want: Wanted, timeout_s: float) -> dict[str, Any]:
    try:
        answer = await connection.api(f"STREAM.CREATE.{want.name}", want.config, timeout_s=timeout_s)
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
        expected = names.samples_stream(names.partition_of(probe))
        try:
            reply = await connection.call(
                names.sample(probe), headers=b"Nats-Expected-Stream:none\r\n", timeout_s=timeout_s
            )
            found = _refusing_stream(reply.payload)
        except (DefenderError, ValueError) as error:
            found = str(error)
        if found != expected:
            mapping = f'"{names.root}.sample.*": "{_destination(names)}"'
            raise ResourceDiffers(
                f"account mapping: {names.sample(probe)} reaches {found!r}, must reach {expected!r}; "
                f"give our account in nats-server's configuration: mappings {{ {mapping} }}"
            )


def _refusing_stream(payload: bytes) -> str:
    import msgspec

    return msgspec.json.decode(payload, type=dict[str, Any]).get("stream", "")  # type: ignore
