"""The settings of Cassandra as the history's store; a part of `runtime.config.Settings`."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, Struct

from runtime.config_types import Age, File, Seconds, Secret, text
from runtime.errors import SettingsError

Keyspace = Annotated[
    str, text("a lower-case word of letters, digits and _, at most 48 long", r"^[a-z][a-z0-9_]{0,47}\Z")
]
PORT: Final = 9042
REPLICAS_MAX: Final = 16
_POINT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\s\[\]/@]+))(?::(\d{1,5}))?")
_ADDRESS6: Final = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_REPLICAS: Final = re.compile(r"([A-Za-z0-9_.-]+)\s*[:=]\s*(\d{1,3})")


class Consistency(StrEnum):
    """How many replicas must answer, of reads and of writes."""

    LOCAL_QUORUM = "local_quorum"
    QUORUM = "quorum"
    ALL = "all"
    LOCAL_ONE = "local_one"
    ONE = "one"


class CassandraSettings(Struct, frozen=True, kw_only=True):
    """Where the cluster is, how to log in, how it keeps what it is given."""

    cassandra_contact_points: Annotated[
        str, Meta(description="Nodes to ask first, host or host:port ([::1]:9042), comma-separated.")
    ] = "127.0.0.1:9042"
    cassandra_datacenter: Annotated[
        str, Meta(description="The datacenter whose nodes are asked; its name in the cluster.")
    ] = "datacenter1"
    cassandra_keyspace: Annotated[Keyspace, Meta(description="Keyspace of this fleet.")] = "defender"
    cassandra_replication: Annotated[
        str, Meta(description="Replicas by datacenter when the keyspace is created, dc:n, comma-separated.")
    ] = "datacenter1:1"
    cassandra_consistency: Annotated[
        Consistency, Meta(description="Replicas that must answer; reads and writes must overlap.")
    ] = Consistency.LOCAL_QUORUM
    cassandra_user: Annotated[str, Meta(description="User name at Cassandra.")] = ""
    cassandra_password: Annotated[Secret, Meta(description="Password of CASSANDRA_USER.")] = ""
    cassandra_tls_ca: Annotated[
        File, Meta(description="File with the CA of the nodes' certificates; switches TLS on.")
    ] = ""
    cassandra_tls_cert: Annotated[File, Meta(description="File with the client's TLS certificate.")] = ""
    cassandra_tls_key: Annotated[File, Meta(description="File with the key of CASSANDRA_TLS_CERT.")] = ""
    cassandra_tls_hostname: Annotated[
        str, Meta(description="Host name in every node's certificate; each node's own address when unset.")
    ] = ""
    cassandra_timeout_s: Annotated[Seconds, Meta(description="Time that Cassandra has to answer.")] = 5.0
    history_ttl_s: Annotated[
        Age, Meta(description="How long Cassandra keeps a report; JetStream keeps HISTORY_DEPTH of them.")
    ] = 90 * 86_400

    @property
    def contact_points(self) -> list[tuple[str, int]]:
        """``cassandra_contact_points`` as hosts and ports. Raises SettingsError."""
        return parse_contact_points(self.cassandra_contact_points)

    @property
    def replication(self) -> dict[str, int]:
        """``cassandra_replication``: the number of replicas by datacenter. Raises SettingsError."""
        return parse_replication(self.cassandra_replication)


def check_cassandra(s: CassandraSettings) -> None:
    """Checks the forms, and what one value alone cannot tell. Raises SettingsError."""
    parse_contact_points(s.cassandra_contact_points)
    replicas = s.replication
    for given in ("cassandra_tls_cert", "cassandra_tls_hostname"):
        if getattr(s, given) and not s.cassandra_tls_ca:
            problem = f"is empty while {given.upper()} is set: give the CA, which switches TLS on"
            raise SettingsError("CASSANDRA_TLS_CA", problem)
    if s.cassandra_datacenter not in replicas:
        raise SettingsError(
            "CASSANDRA_REPLICATION",
            f"{s.cassandra_replication!r} has no replica in CASSANDRA_DATACENTER {s.cassandra_datacenter!r}: "
            f"name it, as in {s.cassandra_datacenter}:3",
        )
    level = s.cassandra_consistency
    asked = {
        Consistency.ONE: sum(replicas.values()),
        Consistency.LOCAL_ONE: replicas[s.cassandra_datacenter],
    }.get(level, 1)
    if asked > 1:
        raise SettingsError(
            "CASSANDRA_CONSISTENCY",
            f"with {level.value} of {asked} replicas a read can miss what was written: set it to "
            f"{Consistency.LOCAL_QUORUM.value} or {Consistency.QUORUM.value}",
        )


def parse_contact_points(text: str) -> list[tuple[str, int]]:
    """``host``, ``host:port``, ``[::1]:port``, a bare IPv6 address; comma-separated. Raises SettingsError."""
    points: list[tuple[str, int]] = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = _POINT.fullmatch(part)
        if match:
            point = (match[1] or match[2], int(match[3]) if match[3] else PORT)
        elif _ADDRESS6.fullmatch(part):
            point = (part, PORT)
        else:
            shown = re.sub(r".*@", "***@", part)  # a login does not belong here, nor into a log
            problem = f"{shown!r} is not a node such as host, host:{PORT} or [::1]:{PORT}"
            raise SettingsError("CASSANDRA_CONTACT_POINTS", problem)
        if not 1 <= point[1] <= 65_535:
            raise SettingsError("CASSANDRA_CONTACT_POINTS", f"{part!r}: a port is between 1 and 65535")
        if point not in points:
            points.append(point)
    if not points:
        raise SettingsError("CASSANDRA_CONTACT_POINTS", f"names no node: give one such as 127.0.0.1:{PORT}")
    return points


def parse_replication(text: str) -> dict[str, int]:
    """``dc1:3,dc2:3``. Raises SettingsError."""
    replicas: dict[str, int] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        match = _REPLICAS.fullmatch(part)
        if match is None:
            problem = f"{part!r} is not a datacenter and its number of replicas, such as dc1:3"
            raise SettingsError("CASSANDRA_REPLICATION", problem)
        name, number = match[1], int(match[2])
        if name in replicas:
            raise SettingsError("CASSANDRA_REPLICATION", f"{text!r} names {name!r} twice: name it once")
        if not 1 <= number <= REPLICAS_MAX:
            problem = f"{part!r}: a datacenter has 1 to {REPLICAS_MAX} replicas; leave out one that has none"
            raise SettingsError("CASSANDRA_REPLICATION", problem)
        replicas[name] = number
    if not replicas:
        raise SettingsError("CASSANDRA_REPLICATION", "names no datacenter: give one such as datacenter1:1")
    return replicas
