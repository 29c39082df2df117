"""The way to Cassandra: the driver's cluster and session as the settings ask for them; its errors in our
words.

The driver (cassandra-driver with its libev loop, which runs in a thread of its own) is imported here and in
what imports this: in workers and in commands that need it, never in the supervisor. It retries no request
by itself; to a node that was lost it tries to connect for as long as it takes.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Final

from cassandra import (
    AuthenticationFailed,
    ConsistencyLevel,
    CoordinationFailure,
    DriverException,
    InvalidRequest,
    OperationTimedOut,
    ProtocolVersion,
    RequestExecutionException,
    RequestValidationException,
    Timeout,
    Unauthorized,
    Unavailable,
    UnresolvableContactPoints,
)
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable, Session
from cassandra.connection import ConnectionBusy, ConnectionException, CrcMismatchException, ProtocolError
from cassandra.io.libevreactor import LibevConnection
from cassandra.policies import (
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    FallthroughRetryPolicy,
    TokenAwarePolicy,
)
from cassandra.pool import NoConnectionsAvailable
from cassandra.protocol import BadCredentials, ErrorMessage
from cassandra.protocol import RequestValidationException as RefusedRequest
from cassandra.query import tuple_factory

import runtime
from runtime.config import LogLevel, Settings
from runtime.errors import (
    CredentialsRefused,
    DefenderError,
    HistoryDiffers,
    HistoryUnreachable,
    SettingsError,
)

RECONNECT_FIRST_S: Final = 0.2
RECONNECT_MOST_S: Final = 2.0
HEARTBEAT_S: Final = 10.0
"""A connection on which nothing came for so long is asked whether it lives; a dead network tells nobody."""
PROTOCOL: Final = ProtocolVersion.V4
"""In version 5 the driver (3.30) loses bytes where a read of the socket ends within a segment's header."""
_EXECUTOR_THREADS: Final = 2
_TEXT_MAX: Final = 300
_INIT: Final = "run: defender init"


class _Wire(LibevConnection):  # type: ignore[misc]  # the driver has no types
    """One send for a batch of rows and one receive for many, not one for every 4 KiB."""

    in_buffer_size = out_buffer_size = 65_536


def _wire(settings: Settings) -> type[_Wire]:
    """Connections that read the TLS files anew each, so that rotated ones are met without a restart: the
    driver keeps a cluster's one context for as long as the cluster is open."""

    class Renewed(_Wire):
        def _wrap_socket_from_context(self) -> ssl.SSLSocket:
            try:
                self.ssl_context = _tls(settings)
            except SettingsError as error:  # half-written; the driver tries again after an OSError
                raise ssl.SSLError(ssl.SSL_ERROR_SSL, f"[SSL] {error}") from error
            wrapped: ssl.SSLSocket = super()._wrap_socket_from_context()
            return wrapped

    return Renewed


def open_cluster(settings: Settings, *, keyspace: bool = True) -> tuple[Cluster, Session]:
    """Connects; blocks for up to CASSANDRA_TIMEOUT_S a contact point, so it is called in a thread.

    With *keyspace* the session is in CASSANDRA_KEYSPACE. The caller ends both with ``cluster.shutdown()``.
    Raises HistoryUnreachable, CredentialsRefused, HistoryDiffers, SettingsError.
    """
    _hush(settings)
    cluster = None
    try:
        cluster = _cluster(settings)
        session = _session(cluster, settings)
        if keyspace:
            session.set_keyspace(settings.cassandra_keyspace)
    except Exception as error:
        if cluster is not None:
            cluster.shutdown()
        raise explained(error, settings) from error
    return cluster, session


def _hush(settings: Settings) -> None:
    """The driver tells of each lost connection with a stack trace, and repeats the server's own warnings (of
    the size of batches); what concerns us comes as an error, and our log says it."""
    wanted = logging.WARNING if settings.log_level is LogLevel.DEBUG else logging.CRITICAL
    logging.getLogger("cassandra").setLevel(wanted)


def _cluster(settings: Settings) -> Cluster:
    points = settings.contact_points
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(
            DCAwareRoundRobinPolicy(local_dc=settings.cassandra_datacenter)
        ),
        retry_policy=FallthroughRetryPolicy(),
        consistency_level=getattr(ConsistencyLevel, settings.cassandra_consistency.name),
        request_timeout=settings.cassandra_timeout_s,
        row_factory=tuple_factory,
    )
    user, hostname = settings.cassandra_user, settings.cassandra_tls_hostname
    return Cluster(
        contact_points=points,
        port=points[0][1],  # of nodes that say none themselves (before Cassandra 4)
        protocol_version=PROTOCOL,
        sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        connection_class=_wire(settings) if settings.cassandra_tls_ca else _Wire,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        reconnection_policy=ExponentialReconnectionPolicy(
            RECONNECT_FIRST_S, RECONNECT_MOST_S, max_attempts=None
        ),
        auth_provider=PlainTextAuthProvider(user, settings.cassandra_password) if user else None,
        ssl_context=_tls(settings),
        ssl_options={"server_hostname": hostname} if hostname and settings.cassandra_tls_ca else None,
        connect_timeout=settings.cassandra_timeout_s,
        control_connection_timeout=settings.cassandra_timeout_s,
        idle_heartbeat_interval=HEARTBEAT_S,
        idle_heartbeat_timeout=settings.cassandra_timeout_s,
        executor_threads=_EXECUTOR_THREADS,
        compression=False,
        metrics_enabled=False,
        monitor_reporting_enabled=False,
        application_name="defender",
        application_version=runtime.__version__,
    )


def _session(cluster: Cluster, settings: Settings) -> Session:
    try:
        return cluster.connect()
    except NoHostAvailable:
        # The nodes of other datacenters are not asked, so a name that is wrong leaves none.
        there = datacenters(cluster)
        if there and settings.cassandra_datacenter not in there:
            raise HistoryDiffers(
                f"CASSANDRA_DATACENTER: the cluster at {settings.cassandra_contact_points} has no datacenter "
                f"{settings.cassandra_datacenter!r}; set it to one that it has: {', '.join(there)}"
            ) from None
        raise


def datacenters(cluster: Cluster) -> dict[str, int]:
    """The names of a connected cluster's datacenters, and how many nodes each has."""
    names = sorted(host.datacenter for host in cluster.metadata.all_hosts() if host.datacenter)
    return {name: names.count(name) for name in names}


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.cassandra_tls_ca:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.cassandra_tls_ca)
    except (ssl.SSLError, OSError) as error:
        problem = f"{settings.cassandra_tls_ca!r} is no PEM certificate: {error}"
        raise SettingsError("CASSANDRA_TLS_CA", problem) from error
    if settings.cassandra_tls_cert:
        try:
            context.load_cert_chain(settings.cassandra_tls_cert, settings.cassandra_tls_key, lambda: "")
        except (ssl.SSLError, OSError) as error:
            problem = f"{settings.cassandra_tls_cert!r} with CASSANDRA_TLS_KEY is no PEM pair: {error}"
            raise SettingsError("CASSANDRA_TLS_CERT", problem) from error
    return context


def explained(error: Exception, settings: Settings) -> DefenderError:
    """What a failed request or connection is in our words.

    HistoryUnreachable may pass by itself, so the request is worth repeating (it may have been applied);
    CredentialsRefused and HistoryDiffers want a person. Raises what is no error of the driver, of the server
    or of the network.
    """
    if isinstance(error, DefenderError):
        return error
    kinds = {kind for cause in _causes(error) for kind in [_kind(cause)]}
    said = _text(error)
    where = f"Cassandra at {settings.cassandra_contact_points}"
    if kinds == {CredentialsRefused}:
        return CredentialsRefused(_refused(error, where, said, settings))
    if kinds == {HistoryDiffers}:
        return HistoryDiffers(_differing(error, where, said, settings))
    return HistoryUnreachable(f"{where}: {_unanswered(error, said, settings)}")


def _causes(error: Exception) -> Iterator[Exception]:
    """What the nodes that were tried said; the error itself where they said nothing."""
    inner = getattr(error, "errors", None) if isinstance(error, NoHostAvailable) else None
    found = (
        [cause for cause in inner.values() if isinstance(cause, Exception)] if isinstance(inner, dict) else []
    )
    if not found:
        yield error
    for cause in found:
        yield from _causes(cause)


def _kind(cause: Exception) -> type[DefenderError]:
    """Which of our errors one cause is."""
    if isinstance(cause, AuthenticationFailed | BadCredentials | Unauthorized):
        return CredentialsRefused
    if isinstance(cause, RequestValidationException | RefusedRequest) or _is_tls(cause) or _is_old(cause):
        return HistoryDiffers
    if isinstance(cause, _PASSING):
        return HistoryUnreachable
    raise cause


_PASSING: Final = (
    NoHostAvailable,
    NoConnectionsAvailable,
    OperationTimedOut,
    RequestExecutionException,
    ErrorMessage,  # OverloadedErrorMessage, ServerError, IsBootstrappingErrorMessage
    ConnectionException,
    ConnectionBusy,
    ProtocolError,
    CrcMismatchException,
    UnresolvableContactPoints,
    DriverException,
    OSError,
)


def _is_tls(cause: Exception) -> bool:
    """The driver packs an SSLError into an OSError of its own; what is left of it is the text."""
    return isinstance(cause, ssl.SSLError) or (isinstance(cause, OSError) and "SSL" in str(cause))


def _is_old(cause: Exception) -> bool:
    return isinstance(cause, DriverException) and "protocol_version" in str(cause)


def _refused(error: Exception, where: str, said: str, settings: Settings) -> str:
    if any(isinstance(cause, Unauthorized) for cause in _causes(error)):
        keyspace = settings.cassandra_keyspace
        return (
            f"{where}: {said}; grant CASSANDRA_USER its rights: GRANT SELECT, MODIFY ON KEYSPACE {keyspace}"
        )
    if not settings.cassandra_user:
        return f"{where} asks for a login: set CASSANDRA_USER and CASSANDRA_PASSWORD"
    return (
        f"{where} refused the user {settings.cassandra_user!r}: correct CASSANDRA_USER or CASSANDRA_PASSWORD "
        f"({said})"
    )


def _differing(error: Exception, where: str, said: str, settings: Settings) -> str:
    causes = list(_causes(error))
    if any(map(_is_tls, causes)):
        remedy = "correct CASSANDRA_TLS_CA, CASSANDRA_TLS_HOSTNAME, CASSANDRA_TLS_CERT"
        return f"{where}: no TLS session: {said}; {remedy}"
    if any(map(_is_old, causes)):
        return f"{where}: {said}; Cassandra 4.1 or 5.0 is needed (native protocol 4)"
    keyspace = settings.cassandra_keyspace
    if f"Keyspace '{keyspace}' does not exist" in said:
        return f"{where} has no keyspace {keyspace!r}: {_INIT}, or correct CASSANDRA_KEYSPACE"
    lost = ("does not exist", "unconfigured table", "Undefined column name", "Unknown identifier")
    if any(isinstance(cause, InvalidRequest) for cause in causes) and any(text in said for text in lost):
        return f"{where}: the tables of {keyspace!r} are not there, or are other ones ({said}): {_INIT}"
    return f"{where} refused a request: {said}"


def _unanswered(error: Exception, said: str, settings: Settings) -> str:
    """Why there was no answer, and what to do about it."""
    causes = list(_causes(error))
    if any(isinstance(cause, Unavailable | Timeout) for cause in causes):
        level = settings.cassandra_consistency.name
        return (
            f"too few replicas answered for CASSANDRA_CONSISTENCY {level}: {said}; bring the nodes back, or "
            "compare it with the keyspace's replication"
        )
    if any(isinstance(cause, CoordinationFailure) for cause in causes):
        return f"replicas failed: {said}; see their logs and whether their disks are full"
    if any(isinstance(cause, OperationTimedOut) for cause in causes):
        return f"no answer within CASSANDRA_TIMEOUT_S {settings.cassandra_timeout_s:g}: {said}"
    if any(isinstance(cause, ErrorMessage | RequestExecutionException) for cause in causes):
        return f"it failed a request: {said}"
    if isinstance(error, UnresolvableContactPoints):
        return "no such host: correct CASSANDRA_CONTACT_POINTS"
    tls = "" if settings.cassandra_tls_ca else ", or set CASSANDRA_TLS_CA if it asks for TLS"
    return f"no node answers ({said}): start it, or correct CASSANDRA_CONTACT_POINTS{tls}"


def _text(error: Exception) -> str:
    """The causes' texts, each once, in one line."""
    texts: dict[str, Any] = {}
    for cause in _causes(error):
        text = cause.summary_msg() if isinstance(cause, ErrorMessage) else str(cause)
        texts[" ".join(text.split()) or type(cause).__name__] = None
    joined = "; ".join(texts)
    return joined if len(joined) <= _TEXT_MAX else f"{joined[: _TEXT_MAX - 1]}…"
