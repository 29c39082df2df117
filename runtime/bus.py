"""The way to NATS: `connect` makes a `Connection`, and what goes wrong there becomes an error with a remedy.

Everything that speaks to NATS imports from here: the connection, the frames, the errors of JetStream.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final

from runtime import credentials, log
from runtime.connection import (
    Connection,
    Deliver,
    NatsError,
    NoServersError,
    PermissionRefused,
    Server,
    load_websockets,
    within,
)
from runtime.errors import CredentialsRefused, DefenderError, ServerUnreachable
from runtime.frames import (
    Delivery,
    Message,
    backoff_s,
    delivery_of,
    frame_hpub,
    frame_pub,
    frame_stored,
    header,
    status_of,
)
from runtime.jetstream import (
    TRANSIENT,
    ApiError,
    Disconnected,
    NoAnswer,
    NotFound,
    PayloadTooLarge,
    Repeated,
    Reply,
    WrongLastSequence,
)

if TYPE_CHECKING:
    from runtime.config import Settings

__all__ = [
    "TRANSIENT",
    "ApiError",
    "Connection",
    "Deliver",
    "Delivery",
    "Disconnected",
    "Message",
    "NoAnswer",
    "NotFound",
    "PayloadTooLarge",
    "PermissionRefused",
    "Repeated",
    "Reply",
    "WrongLastSequence",
    "backoff_s",
    "connect",
    "delivery_of",
    "frame_hpub",
    "frame_pub",
    "frame_stored",
    "header",
    "status_of",
    "within",
]

PING_INTERVAL_S: Final = 3
"""Two unanswered pings end a connection: a dead peer is noticed within 9 s, before a lease of 20 s ends."""
CONNECT_S_MAX: Final = 2.0
RETRY_FIRST_S: Final = 0.1
RETRY_MOST_S: Final = 5.0
_LOG = log.get("bus")

Hook = Callable[[], Awaitable[None]]


async def connect(
    settings: Settings,
    name: str,
    *,
    wait: bool = False,
    reconnect: bool = True,
    random: Random | None = None,
    on_disconnect: Hook | None = None,
    on_reconnect: Hook | None = None,
) -> Connection:
    """Connect and check that JetStream answers; *name* is what the server shows for this client.

    With *wait* it tries until it succeeds, pausing longer and longer, and logs each new cause once;
    else it raises ServerUnreachable, CredentialsRefused, PermissionRefused or JetStreamOff. SettingsError is
    raised at once. With *reconnect* the session goes on over a lost connection; without, `ended` is set.

    Keys and certificates are read from their files at each try, reconnects included. A file that cannot be
    used is a person's mistake when a session begins that is to last (with *reconnect*), and is raised. Later,
    and for a session that follows others, it is a rotation half-way, and waited out.
    """
    random = random or Random()
    shown = ""
    for attempt in itertools.count():
        try:
            return await _dial(settings, name, reconnect, random, on_disconnect, on_reconnect)
        except DefenderError as error:
            mistaken = reconnect and attempt == 0 and isinstance(error, credentials.FileUnusable)
            if not wait or not error.temporary or mistaken:
                raise
            if str(error) != shown:
                shown = str(error)
                _LOG.warning("waiting for NATS", cause=shown)
            await asyncio.sleep(backoff_s(attempt, RETRY_FIRST_S, RETRY_MOST_S, random))
    raise AssertionError("unreachable")


async def _dial(
    settings: Settings,
    name: str,
    reconnect: bool,
    random: Random,
    on_disconnect: Hook | None,
    on_reconnect: Hook | None,
) -> Connection:
    connection = Connection()
    causes: list[Exception] = []

    async def note(error: Exception) -> None:
        if not causes or str(causes[-1]) != str(error):
            causes.append(error)
            if connection.established:
                _LOG.warning("connection trouble", server=connection.where, cause=_cause(error))

    async def disconnected() -> None:
        if connection.established:
            connection.fail_replies()
            if on_disconnect is not None:
                await on_disconnect()

    async def reconnected() -> None:
        causes.clear()
        _LOG.info("connected again", server=connection.where)
        if on_reconnect is not None:
            await on_reconnect()

    async def closed() -> None:
        connection.failure = connection.failure or connection.last_error
        connection.ended.set()

    def next_server(servers: list[Server], _: dict[str, Any]) -> tuple[Server, float]:
        fewest = min(servers, key=lambda server: server.reconnects)
        return fewest, backoff_s(fewest.reconnects, RETRY_FIRST_S, RETRY_MOST_S, random)

    hooks: dict[str, Any] = {
        "error_cb": note,
        "disconnected_cb": disconnected,
        "reconnected_cb": reconnected,
        "closed_cb": closed,
        "reconnect_to_server_handler": next_server,
    }
    credentials.read(settings)
    connection.shown = partial(credentials.read, settings)
    connection.explain = _explaining(settings, connection)
    options = _options(settings)
    try:
        await connection.connect(name=name, **options, **hooks)
        await connection.open_inbox()
        await connection.api("INFO", timeout_s=settings.request_timeout_s)
    except (DefenderError, asyncio.CancelledError):
        await connection.cut()
        raise
    except (OSError, NatsError) as error:
        await connection.cut()
        no_servers = isinstance(error, NoServersError) and causes
        raise _refusal(settings, causes[-1] if no_servers else error) from error
    connection.options.update(allow_reconnect=reconnect, max_reconnect_attempts=-1)
    connection.established = True
    causes.clear()
    return connection


def _options(settings: Settings) -> dict[str, Any]:
    """What nats-py's ``connect`` takes. One pass over the servers: `connect` does the waiting."""
    options: dict[str, Any] = {
        "servers": settings.servers,
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0,
        "connect_timeout": min(CONNECT_S_MAX, settings.request_timeout_s),
        "ping_interval": PING_INTERVAL_S,
        "user": settings.nats_user or None,
        "password": settings.nats_password or None,
        "token": settings.nats_token or None,
        "tls_hostname": settings.nats_tls_hostname or None,
        "inbox_prefix": credentials.inbox_of(credentials.user_name(settings)),
    }
    if any(server.startswith(("ws:", "wss:")) for server in settings.servers):
        load_websockets()
    return options


def _cause(error: Exception) -> str:
    return str(error).removeprefix("nats: ").strip() or type(error).__name__


def _refusal(settings: Settings, error: Exception) -> DefenderError:
    """Our error for what nats-py raised while it connected."""
    servers = ", ".join(url.rpartition("@")[2].removeprefix("nats://") for url in settings.servers)
    cause = _cause(error)
    if "authorization" in cause.lower() or "authentication" in cause.lower():
        settings_named = "NATS_CREDS, NATS_USER and NATS_PASSWORD, NATS_TOKEN or NATS_NKEY_SEED"
        return CredentialsRefused(f"{servers}: {cause}; correct {settings_named}")
    if isinstance(error, ssl.SSLError):
        return ServerUnreachable(
            f"{servers}: no TLS session: {cause}; correct NATS_TLS_CA, NATS_TLS_CERT or NATS_TLS_HOSTNAME"
        )
    remedy = "start one, or correct NATS_SERVERS"
    if not settings.nats_tls_cert and any(url.startswith("tls:") for url in settings.servers):
        remedy += ", or give NATS_TLS_CERT and NATS_TLS_KEY if it asks for a certificate"
    return ServerUnreachable(f"{servers}: no NATS server answered: {cause}; {remedy}")


def _explaining(settings: Settings, connection: Connection) -> Callable[[str, str], DefenderError]:
    """Makes a connection's errors for what the server does not let us do; each is logged once."""
    told: set[str] = set()

    def explain(verb: str, subject: str) -> PermissionRefused:
        error = _permission_refused(settings, connection.where, verb, subject)
        if str(error) not in told:
            told.add(str(error))
            _LOG.error("permission refused", cause=str(error))
        return error

    return explain


def _permission_refused(settings: Settings, where: str, verb: str, subject: str) -> PermissionRefused:
    from runtime import permissions  # wanted by nobody whose permissions are right

    user = credentials.user_name(settings)
    login = f"the user {user!r}" if user else "our login"
    text = f"{where} does not let {login} {verb} {subject}"
    if verb != "publish":
        remedy = "defender permissions prints what each role must be let to do"
    elif ".STREAM.CREATE." in subject:
        remedy = "it is not there yet: an operator makes it, with defender init"
    else:
        roles = " or ".join(permissions.roles_that_publish(settings, subject))
        may = f"log in as the role {roles}, which may, or give it" if roles else "no role may; give it"
        remedy = f"{may} the permission (defender permissions prints what each role has)"
    return PermissionRefused(f"{text}: {remedy}")
