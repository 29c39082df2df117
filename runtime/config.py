"""Settings of a defender: one frozen struct, filled from the environment, each field with a laptop's default.

The environment variable of a field is its name in upper case (``lease_ttl_s`` is ``LEASE_TTL_S``). A variable
that is unset or empty leaves the default; a variable that is none of ours is ignored, for the environment is
shared. `load` checks each value, then the relations between them; what is wrong is a `SettingsError` that
names the variable. Nothing here shows a secret: neither `sources`, nor an error, nor ``repr``.
"""

from __future__ import annotations

import operator
import os
import re
import socket
import sys
import uuid
from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta, Struct, field

from runtime.config_cassandra import CassandraSettings, check_cassandra
from runtime.config_types import Age, File, Label, Seconds, Secret, Token
from runtime.errors import SettingsError
from runtime.names import Names

ID_MAX: Final = 9999
MASK: Final = "***"


class Identity(StrEnum):
    """Where the stable ID comes from."""

    CLAIM = "claim"
    ORDINAL = "ordinal"
    POD = "pod"


class RingJoin(StrEnum):
    """How a stable ID comes into the ring."""

    AUTO = "auto"
    MANUAL = "manual"


class History(StrEnum):
    """What keeps the charts' history."""

    JETSTREAM = "jetstream"
    CASSANDRA = "cassandra"


class PodDeletionCost(StrEnum):
    """Whether the pod tells Kubernetes which one a scale-down takes first."""

    AUTO = "auto"
    OFF = "off"


class LogFormat(StrEnum):
    """How a line of the log looks."""

    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    """The least severe event that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _log_format() -> LogFormat:
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return LogFormat.CONSOLE if terminal else LogFormat.JSON


class Settings(CassandraSettings, frozen=True, kw_only=True):
    """Every setting; units come last in the names: ``_s`` seconds, ``_mb`` 10^6 bytes."""

    # The way to NATS.
    nats_servers: Annotated[str, Meta(description="URLs of NATS servers, comma-separated.")] = (
        "nats://127.0.0.1:4222"
    )
    nats_creds: Annotated[File, Meta(description="File with the user's JWT and seed (.creds).")] = ""
    nats_user: Annotated[str, Meta(description="User name at the NATS server.")] = ""
    nats_password: Annotated[Secret, Meta(description="Password of NATS_USER.")] = ""
    nats_token: Annotated[Secret, Meta(description="Token for the NATS server.")] = ""
    nats_nkey_seed: Annotated[File, Meta(description="File with the NKey seed.")] = ""
    nats_tls_ca: Annotated[File, Meta(description="File with the CA of the server's certificate.")] = ""
    nats_tls_cert: Annotated[File, Meta(description="File with the client's TLS certificate.")] = ""
    nats_tls_key: Annotated[File, Meta(description="File with the key of NATS_TLS_CERT.")] = ""
    nats_tls_hostname: Annotated[str, Meta(description="Host name in the server's certificate.")] = ""

    # What it keeps in NATS.
    nats_kv_stable_ids: Annotated[Token, Meta(description="Bucket of the stable IDs' claims.")] = "stable-ids"
    nats_kv_heartbeats: Annotated[Token, Meta(description="Bucket of heartbeats.")] = "defender-heartbeats"
    nats_kv_assignments: Annotated[Token, Meta(description="Bucket of ring, owners.")] = (
        "defender-assignments"
    )
    nats_kv_leader: Annotated[Token, Meta(description="Bucket of the leader's lease.")] = "defender-leader"
    nats_kv_chart_specs: Annotated[Token, Meta(description="Bucket of the charts' specs.")] = "chart-specs"
    subject_root: Annotated[Token, Meta(description="First token of every subject.")] = "tfdc"
    stream_samples: Annotated[Token, Meta(description="Stream of the reports.")] = "SAMPLES"
    stream_verdicts: Annotated[Token, Meta(description="Stream of the verdicts.")] = "VERDICTS"
    stream_alarms: Annotated[Token, Meta(description="Stream of the alarms.")] = "ALARMS"
    stream_rejected: Annotated[Token, Meta(description="Stream of what was rejected, and why.")] = "REJECTED"
    stream_replicas: Annotated[
        int, Meta(ge=1, le=5, description="Copies of each stream and bucket in the NATS cluster.")
    ] = 1
    samples_max_age_s: Annotated[Age, Meta(description="How long a report stays in its stream.")] = 86_400
    alarms_max_age_s: Annotated[Age, Meta(description="How long an alarm stays in its stream.")] = 30 * 86_400
    rejected_max_age_s: Annotated[Age, Meta(description="How long a rejected report is kept.")] = 7 * 86_400
    duplicate_window_s: Annotated[
        Age, Meta(description="How long the server knows a message's ID and drops a repeat of it.")
    ] = 600

    # Who it is.
    pod_name: Annotated[
        Label, Meta(description="Name of the pod; HOSTNAME or the host's name when unset.")
    ] = field(default_factory=socket.gethostname)
    pod_uid: Annotated[
        Label, Meta(description="UID of the pod, the same after a container's restart; random when unset.")
    ] = field(default_factory=lambda: str(uuid.uuid4()))
    track: Annotated[Label, Meta(description="Track (Deployment) of the pod: stable, canary.")] = "stable"
    revision: Annotated[Label, Meta(description="Revision of the track: the pod-template hash.")] = "dev"
    id_range: Annotated[str, Meta(description="Numbers of the stable IDs of the track, first-last.")] = "0-99"
    identity: Annotated[
        Identity, Meta(description="Source of the stable ID: claim, ordinal (StatefulSet's pod name) or pod.")
    ] = Identity.CLAIM
    max_defenders: Annotated[
        int,
        Meta(
            ge=0, le=ID_MAX + 1, description="Holders in the ID range, others stand by; 0: all that it has."
        ),
    ] = 0
    ring_join: Annotated[
        RingJoin, Meta(description="auto: the ID joins the ring; manual: when an operator cuts over.")
    ] = RingJoin.AUTO
    ring_weight: Annotated[
        float, Meta(ge=0.1, le=100, description="The pod's share of the partitions, relative to the others'.")
    ] = 1.0
    pod_deletion_cost: Annotated[
        PodDeletionCost,
        Meta(description="auto: in Kubernetes, a scale-down takes idle pods, then the highest IDs; off."),
    ] = PodDeletionCost.AUTO
    service_account_dir: Annotated[
        str, Meta(description="Folder of the service account that Kubernetes mounts: token, ca.crt.")
    ] = "/var/run/secrets/kubernetes.io/serviceaccount"

    # How much it does at once.
    partitions: Annotated[
        int, Meta(ge=1, le=4096, description="Partitions, the same in the whole fleet.")
    ] = 64
    workers: Annotated[int, Meta(ge=1, le=64, description="Worker processes.")] = 2
    cache_mb: Annotated[int, Meta(ge=1, le=65_536, description="The pod's cache of charts, 10^6 bytes.")] = (
        100
    )
    window: Annotated[int, Meta(ge=16, le=1023, description="Subgroups in a chart's window.")] = 256
    history_depth: Annotated[int, Meta(ge=16, le=65_536, description="Reports kept for each chamber.")] = 256
    history: Annotated[History, Meta(description="Store of the charts' history.")] = History.JETSTREAM
    batch_reports_max: Annotated[
        int, Meta(ge=1, le=1000, description="Reports judged in one batch; 1000 is the server's limit.")
    ] = 500
    batches_in_flight_max: Annotated[
        int, Meta(ge=1, le=64, description="Batches of a worker that are being published.")
    ] = 2
    prefetch_reports_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Reports that a worker holds and has not judged.")
    ] = 8192
    report_bytes_max: Annotated[
        int, Meta(ge=64, le=8_388_608, description="Size of a report beyond which it is rejected.")
    ] = 262_144
    at_past_max_s: Annotated[
        Age, Meta(description="How far a report's time may lie before the server's time of receipt.")
    ] = 31 * 86_400
    at_future_max_s: Annotated[
        Age, Meta(description="How far a report's time may lie after the server's time of receipt.")
    ] = 3600

    # Times.
    lease_ttl_s: Annotated[
        float, Meta(ge=1, le=86_400, description="Life of a claim that is not renewed (the bucket's TTL).")
    ] = 30.0
    lease_held_s: Annotated[
        Seconds, Meta(description="Own deadline of the lease, from the start of the request that renewed it.")
    ] = 20.0
    renew_s: Annotated[Seconds, Meta(description="Time between two renewals of the claim.")] = 2.0
    heartbeat_ttl_s: Annotated[
        float,
        Meta(ge=1, le=86_400, description="Life of a heartbeat that is not renewed (its bucket's TTL)."),
    ] = 30.0
    silence_s: Annotated[
        Seconds, Meta(description="Time without a heartbeat after which the leader holds a pod for dead.")
    ] = 6.0
    leader_ttl_s: Annotated[
        float, Meta(ge=1, le=3600, description="Life of the leader's lease (its bucket's TTL).")
    ] = 10.0
    settle_s: Annotated[Seconds, Meta(description="Time in which joins are gathered into one change.")] = 1.0
    hold_down_s: Annotated[
        Seconds, Meta(description="Time that a vacant ID stays in the ring, for a successor.")
    ] = 10.0
    successor_wait_s: Annotated[
        Seconds, Meta(description="Time that a draining defender waits for a standby to appear.")
    ] = 3.0
    handoff_s: Annotated[
        Seconds, Meta(description="Time to hand a partition over warm; then it is released anyway.")
    ] = 20.0
    copies_max: Annotated[
        int, Meta(ge=1, le=64, description="Partitions that a worker copies ahead at the same time.")
    ] = 2
    request_timeout_s: Annotated[Seconds, Meta(description="Time that the NATS server has to answer.")] = 5.0
    pull_expires_s: Annotated[Seconds, Meta(description="Life of a pull request for reports.")] = 10.0
    drain_s: Annotated[
        float, Meta(gt=0, lt=10, description="Time to finish, hand over and release after SIGTERM.")
    ] = 8.0
    worker_stall_s: Annotated[
        Seconds, Meta(description="Time without progress after which a worker is aborted.")
    ] = 10.0
    worker_restarts_max: Annotated[
        int, Meta(ge=0, le=1000, description="Deaths of workers within the window that the pod survives.")
    ] = 5
    worker_restarts_window_s: Annotated[Seconds, Meta(description="Window of WORKER_RESTARTS_MAX.")] = 60.0
    restart_backoff_s: Annotated[Seconds, Meta(description="First wait before a worker's restart.")] = 0.05
    restart_backoff_max_s: Annotated[Seconds, Meta(description="Longest wait before a restart.")] = 5.0

    # What it shows.
    http_host: Annotated[str, Meta(description="Address for probes and metrics.")] = "0.0.0.0"
    http_port: Annotated[
        int, Meta(ge=0, le=65_535, description="Port for probes and metrics; 0 takes a free one and logs it.")
    ] = 8080
    log_format: Annotated[
        LogFormat, Meta(description="json or console; when unset, console if stderr is a terminal.")
    ] = field(default_factory=_log_format)
    log_level: Annotated[LogLevel, Meta(description="Least severe event that is logged.")] = LogLevel.INFO
    numba_cache_dir: Annotated[
        str, Meta(description="Folder of compiled kernels, numba's own variable; empty: its default.")
    ] = ""

    @property
    def ids(self) -> range:
        """The numbers of ``id_range``, its last included."""
        return _parse_ids(self.id_range)

    @property
    def holders_max(self) -> int:
        """How many may hold an ID of the range at one time."""
        return self.max_defenders or len(self.ids)

    @property
    def servers(self) -> list[str]:
        """The URLs of ``nats_servers``; one without a scheme gets ``nats://``."""
        parts = (part.strip() for part in self.nats_servers.split(","))
        return [part if "://" in part else f"nats://{part}" for part in parts if part]

    @property
    def names(self) -> Names:
        """The names of subjects and streams."""
        return Names(
            root=self.subject_root,
            partitions=self.partitions,
            samples=self.stream_samples,
            verdicts=self.stream_verdicts,
            alarms=self.stream_alarms,
            rejected=self.stream_rejected,
        )

    def __repr__(self) -> str:
        shown = (f"{name}={_shown(name, getattr(self, name))!r}" for name in self.__struct_fields__)
        return f"Settings({', '.join(shown)})"


class Setting(Struct, frozen=True):
    """One setting as `sources` shows it; the *value* of a secret is masked."""

    name: str
    value: str
    source: Literal["environment", "default"]
    meaning: str
    secret: bool


_FIELDS: Final = {f.name: f for f in msgspec.structs.fields(Settings)}


def load(environ: Mapping[str, str]) -> Settings:
    """The settings that *environ* asks for; files must exist. Raises SettingsError."""
    chosen = {name: _parse(name, environ[name.upper()]) for name in _FIELDS if environ.get(name.upper())}
    if "pod_name" not in chosen and environ.get("HOSTNAME"):
        chosen["pod_name"] = _parse("pod_name", environ["HOSTNAME"])
    settings = Settings(**chosen)
    check(settings)
    return settings


def sources(environ: Mapping[str, str]) -> list[Setting]:
    """Each setting: its value, where that comes from, what it means. Raises SettingsError."""
    settings = load(environ)
    return [
        Setting(
            name=name.upper(),
            value=_shown(name, getattr(settings, name)),
            source="environment" if environ.get(name.upper()) else "default",
            meaning=_meaning(name),
            secret=bool(_extra(name).get("secret")),
        )
        for name in _FIELDS
    ]


class Relation(NamedTuple):
    """``setting <relation> factor x other``, and why that must hold."""

    setting: str
    sign: str
    factor: float
    other: str
    why: str


RELATIONS: Final = (
    Relation("lease_held_s", "<", 1, "lease_ttl_s", "a holder fences itself before its claim can expire"),
    Relation("renew_s", "<", 1 / 3, "lease_held_s", "two renewals may fail and the lease is still held"),
    Relation(
        "request_timeout_s", "<=", 1 / 2, "lease_held_s", "an unanswered renewal leaves time for the next"
    ),
    Relation("heartbeat_ttl_s", ">", 3, "renew_s", "two heartbeats may be lost"),
    Relation("silence_s", ">=", 2, "renew_s", "one heartbeat may be lost"),
    Relation("silence_s", "<", 1, "lease_ttl_s", "a death is noticed before the claim expires by itself"),
    Relation("leader_ttl_s", ">", 2, "renew_s", "one renewal of the leader's lease may fail"),
    Relation("duplicate_window_s", ">=", 2, "lease_ttl_s", "the server drops what a former owner repeats"),
    Relation("samples_max_age_s", ">=", 1, "duplicate_window_s", "the server refuses shorter-lived streams"),
    Relation("alarms_max_age_s", ">=", 1, "duplicate_window_s", "the server refuses shorter-lived streams"),
    Relation("rejected_max_age_s", ">=", 1, "duplicate_window_s", "the server refuses shorter-lived streams"),
    Relation("restart_backoff_s", "<=", 1, "restart_backoff_max_s", "the first wait is the shortest"),
    Relation("window", "<=", 1, "history_depth", "a rebuild fills the windows from the history"),
    Relation("batch_reports_max", "<=", 1, "prefetch_reports_max", "a batch is taken from what was fetched"),
)
_SIGNS: Final = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def check(settings: Settings) -> None:
    """Checks what one value alone cannot tell: relations, forms, files. Raises SettingsError."""
    for setting, sign, factor, other, why in RELATIONS:
        value, limit = getattr(settings, setting), factor * getattr(settings, other)
        if not _SIGNS[sign](value, limit):
            bound = other.upper() if factor == 1 else f"{factor:.3g} x {other.upper()}"
            problem = f"is {value:.12g}, must be {sign} {bound} (= {limit:.12g}): {why}"
            raise SettingsError(setting.upper(), problem)
    _check_scope(settings)
    _check_servers(settings)
    _check_login(settings)
    _check_names(settings)
    check_cassandra(settings)


def _check_scope(s: Settings) -> None:
    if len(s.ids) < s.max_defenders:
        problem = f"{s.id_range!r} has fewer IDs than MAX_DEFENDERS ({s.max_defenders}): widen it"
        raise SettingsError("ID_RANGE", problem)


_URL: Final = re.compile(
    r"(nats|tls|ws|wss)://"
    r"([^@/\s]*@)?"  # user:password
    r"(\[[0-9A-Fa-f:.]+\]|[^@:/\s\[\]]+)"  # an IPv6 address in brackets, or a name
    r"(:\d{1,5})?/?"
)


def _check_servers(s: Settings) -> None:
    if not s.servers:
        raise SettingsError("NATS_SERVERS", "names no server: give a URL such as nats://127.0.0.1:4222")
    for server in s.servers:
        if not _URL.fullmatch(server):
            problem = (
                f"{_without_password(server)!r} is not a URL such as nats://host:4222 or tls://host:4222"
            )
            raise SettingsError("NATS_SERVERS", problem)


_PAIRS: Final = (
    ("nats_user", "nats_password"),
    ("nats_tls_cert", "nats_tls_key"),
    ("cassandra_user", "cassandra_password"),
    ("cassandra_tls_cert", "cassandra_tls_key"),
)


def _check_login(s: Settings) -> None:
    for name in _FIELDS:
        path = getattr(s, name)
        if _extra(name).get("file") and path and not os.path.isfile(path):
            problem = f"{path!r} is not a file: correct the path, or mount the file there"
            raise SettingsError(name.upper(), problem)
    for one, other in _PAIRS:
        given, missing = (one, other) if getattr(s, one) else (other, one)
        if getattr(s, given) and not getattr(s, missing):
            problem = f"is empty while {given.upper()} is set: set both or neither"
            raise SettingsError(missing.upper(), problem)
    ways = [n for n in ("nats_creds", "nats_user", "nats_token", "nats_nkey_seed") if getattr(s, n)]
    if len(ways) > 1:
        raise SettingsError(ways[1].upper(), f"is set beside {ways[0].upper()}: choose one way to log in")


def _check_names(s: Settings) -> None:
    streams = ("stream_samples", "stream_verdicts", "stream_alarms", "stream_rejected")
    for group in (streams, [name for name in _FIELDS if name.startswith("nats_kv_")]):
        taken: dict[str, str] = {}
        for name in group:
            other = taken.setdefault(getattr(s, name), name)
            if other != name:
                problem = f"is {getattr(s, name)!r}, as {other.upper()} is: give each a name of its own"
                raise SettingsError(name.upper(), problem)


def _parse_ids(text: str) -> range:
    match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", text)
    if match is None:
        raise SettingsError("ID_RANGE", f"{text!r} is not a range such as 0-99 (or one number)")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise SettingsError("ID_RANGE", f"{text!r} ends before it begins: write {last}-{first}")
    if last > ID_MAX:
        raise SettingsError("ID_RANGE", f"{text!r} goes beyond {ID_MAX}: choose smaller numbers")
    return range(first, last + 1)


def _parse(name: str, text: str) -> Any:
    base = _base(name)
    if base is not str:
        text = text.strip()
    if issubclass(base, Enum):
        text = text.lower()
    try:
        return msgspec.convert(text, type=_FIELDS[name].type, strict=False)
    except msgspec.ValidationError:
        raise SettingsError(name.upper(), f"{_shown(name, text)!r} is not {_expected(name)}") from None


def _metas(name: str) -> list[Meta]:
    return [meta for meta in get_args(_FIELDS[name].type)[1:] if isinstance(meta, Meta)]


def _base(name: str) -> type:
    base = get_args(_FIELDS[name].type)[0]
    assert isinstance(base, type), name
    return base


def _extra(name: str) -> dict[str, Any]:
    return {key: value for meta in _metas(name) for key, value in (meta.extra or {}).items()}


def _meaning(name: str) -> str:
    return " ".join(meta.description for meta in _metas(name) if meta.description)


def _expected(name: str) -> str:
    """What a value of the field must be, in words: "a whole number >= 1, <= 64"."""
    base = _base(name)
    if issubclass(base, Enum):
        return f"one of {', '.join(str(member.value) for member in base)}"
    if base is str:
        return str(_extra(name).get("form", "text"))
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    bounds = [
        f"{sign} {value}"
        for meta in _metas(name)
        for attr, sign in signs
        if (value := getattr(meta, attr)) is not None
    ]
    return " ".join(["a whole number" if base is int else "a number", ", ".join(bounds)]).rstrip()


def _shown(name: str, value: object) -> str:
    """The value for a person's eyes: secrets masked, passwords in URLs too."""
    text = str(value)
    if _extra(name).get("secret"):
        return MASK if text else ""
    return _without_password(text) if name == "nats_servers" else text


def _without_password(urls: str) -> str:
    return re.sub(r"(^|//|,\s*)[^@/,\s]*@", rf"\g<1>{MASK}@", urls)
