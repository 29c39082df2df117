"""One connection to NATS, hot enough for the workers, strict enough for fencing.

`Connection` is nats-py's client with four things more:

- `tap`: messages go to a plain function straight from the parser, no queue, no task, no `Msg`
  (an awaited queue a message costs 30-54 k/s, a direct call 136-238 k/s).
- `write`: ready-made protocol frames in one call; `frame_pub` and `frame_hpub` make them.
- `ask`, `call`, `api`, `start_all`: replies over one inbox and a table of futures, none a subscription.
- What was not sent on this connection is never sent on the next one: nats-py keeps it over a reconnect,
  which would let a fenced process publish when the network heals. Here publishing raises `Disconnected`
  meanwhile, what was waiting is dropped, and every open reply fails.

All private attributes of nats-py that Defender touches are in this module and in `TOUCHED`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import re
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any, ClassVar, Final, TypeVar, cast

import msgspec

from runtime.credentials import Shown
from runtime.errors import CredentialsRefused, DefenderError
from runtime.frames import Message, frame_hpub, frame_pub, frames_stored, status_of
from runtime.jetstream import (
    Disconnected,
    NoAnswer,
    PayloadTooLarge,
    Repeated,
    Reply,
    checked_ack,
    checked_answer,
)

_modules = cast(dict[str, ModuleType | None], sys.modules)
_hide_aiohttp = "aiohttp" not in _modules
if _hide_aiohttp:
    # nats-py imports aiohttp for WebSockets: 0.13-0.18 s of the 0.5 s in which an ID must be claimed.
    _modules["aiohttp"] = None
try:
    import nats.aio.client
    import nats.aio.subscription
    import nats.aio.transport
    import nats.errors
finally:
    if _hide_aiohttp:
        del _modules["aiohttp"]

from runtime.parser import HotParser  # noqa: E402  (imports nats, which must not find aiohttp)

TOUCHED: Final = (
    "_auth_configured",
    "_connect_to_server",
    "_error_cb",
    "_flush_queue",
    "_max_payload",
    "_pending",
    "_pending_data_size",
    "_process_connect_init",
    "_process_err",
    "_process_msg",
    "_ps",
    "_process_op_err",
    "_public_nkey",
    "_send_command",
    "_send_unsubscribe",
    "_sid",
    "_signature_cb",
    "_subs",
    "_transport",
    "_user_jwt_cb",
)
"""Every private attribute of nats-py's client that is read, written or overridden here."""

CUT_S_MAX: Final = 0.2
"""nats-py waits for the socket to close, which after a failed TLS handshake is never reported."""
NatsError = nats.errors.Error
NoServersError = nats.errors.NoServersError
Server = nats.aio.client.Server
Deliver = Callable[[bytes, bytes, bytes, bytes | None], None]
T = TypeVar("T")
_REFUSED: Final = re.compile(rb"Permissions Violation for (\w+)[^\"]*\"([^\"]*)\"", re.IGNORECASE)


class PermissionRefused(NoAnswer):
    """The server does not let this user do it. Nothing was done; there is never an answer, so it is told as
    one that is missing: who waits for an answer tries again, and goes on when the permission is given."""

    exit_code: ClassVar[int] = CredentialsRefused.exit_code


async def wait_for(awaited: Awaitable[T], timeout_s: float | None) -> T:
    """As `asyncio.wait_for` is from Python 3.12 on. Raises TimeoutError.

    Before, it returns the result when a cancellation comes in the turn of the loop in which the result does,
    and forgets the cancellation: an interrupted `connect` went on, a `close` while reconnecting ended with
    an open session.
    """
    async with asyncio.timeout(timeout_s):
        return await awaited


class _Asyncio(ModuleType):
    """What nats-py sees as asyncio: all of it, but for `wait_for`."""

    wait_for = staticmethod(wait_for)

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


if sys.version_info < (3, 12):
    for _module in (nats.aio.client, nats.aio.subscription, nats.aio.transport):
        _module.__dict__["asyncio"] = _Asyncio("asyncio")


def load_websockets() -> None:
    """What the import above left out: needed for servers at ws:// and wss://."""
    nats.aio.transport.__dict__["aiohttp"] = importlib.import_module("aiohttp")


class Connection(nats.aio.client.Client):
    """A NATS connection; make it with `runtime.bus.connect`. One event loop, no threads."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: BaseException | None = None
        self.ended = asyncio.Event()
        """Set when the session is over for good; `failure` says why, when it was not `close`."""
        self.established = False
        """Set by `runtime.bus.connect` when the session stands; hooks and the log are silent before."""
        self.shown: Callable[[], Shown] | None = None
        """Reads what is shown to the server, at each try to connect; it may raise a DefenderError."""
        self.explain: Callable[[str, str], DefenderError] = _explained
        """Makes the error for what the server does not let us do: publish or subscribe to a subject."""
        self._closing: asyncio.Task[None] | None = None
        self.taps: dict[int, Deliver] = {}
        """What `tap` made, by the subscription's number; for the parser."""
        self._replies: dict[bytes, asyncio.Future[Reply]] = {}
        self._several: dict[bytes, list[Reply]] = {}
        self._acks: dict[bytes, _Acks] = {}
        self._asked: dict[bytes, str | list[Message]] = {}
        """On which subject, or with which messages, each open reply was asked for."""
        self._tokens = itertools.count(1)
        self._inbox = b""
        self._prefix_length = 0
        self._ps = HotParser(self)

    # --- what nats-py calls ---------------------------------------------------------------------

    async def pass_on(self, sid: int, subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> None:
        """Called by the parser for a message that no tap takes."""
        await self._process_msg(sid, subject, reply, payload, headers)

    def dispatch(
        self, deliver: Deliver, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None
    ) -> None:
        """Called by the parser for a message of a tap."""
        try:
            deliver(subject, reply, payload, headers)
        except Exception as error:
            # nats-py's reader would die of it in silence, with the connection open.
            self._fail(error)

    async def _send_command(self, cmd: bytes, priority: bool = False) -> None:
        if self.is_connected:
            await super()._send_command(cmd, priority)
        elif cmd.startswith((b"PUB", b"HPUB")):
            raise Disconnected(f"not connected to {self.where}: nothing can be published")
        # SUB and UNSUB are dropped: nats-py subscribes anew when it is connected again.

    async def _connect_to_server(self, server: Any) -> None:
        if self.shown is not None:
            try:
                self._show(self.shown())
            except DefenderError as error:
                raise NatsError(str(error)) from error  # by any other nats-py would stop to reconnect
        await super()._connect_to_server(server)

    def _show(self, shown: Shown) -> None:
        if shown.tls is not None:
            self.options["tls"] = shown.tls
        key = shown.key
        if key is not None:
            self._auth_configured = True
            self._signature_cb = key.signature
            self._public_nkey = key.public
            self._user_jwt_cb = (lambda: bytearray(key.jwt.encode())) if key.jwt else None

    async def _process_connect_init(self) -> None:
        self._drop_pending()
        await super()._process_connect_init()

    async def _process_err(self, err_msg: str) -> None:
        # nats-py passes it on in lower case; its parser still has the line as the server wrote it
        refused = _REFUSED.search(bytes(self._ps.buf))
        if refused is not None:
            self._refuse(refused[1].lower(), refused[2].decode(errors="replace"))
        elif self.established:
            # nats-py would close for good, when a user's JWT expires for example
            error = NatsError(f"nats: {err_msg.strip(chr(39))}")
            await self._error_cb(error)
            await self._process_op_err(error)
        else:
            await super()._process_err(err_msg)

    def _refuse(self, verb: bytes, subject: str) -> None:
        """The requests that will have no answer fail at once."""
        is_publish = verb == b"publish"
        error = self.explain("publish" if is_publish else "subscribe to", subject)
        is_deaf = not is_publish and self._inbox.startswith(subject.partition(".")[0].encode() + b".")
        for token, future in list(self._replies.items()):
            asked = self._asked[token]
            concerned = asked == subject if isinstance(asked, str) else any(m[0] == subject for m in asked)
            if not future.done() and (is_deaf or (is_publish and concerned)):
                future.set_exception(error)

    async def _process_op_err(self, e: Exception) -> None:
        self._abort()
        await super()._process_op_err(e)

    def _drop_pending(self) -> None:
        self._pending.clear()
        self._pending_data_size = 0

    def _abort(self) -> None:
        """Forget what waits and reset the socket; to close one whose peer is gone waits for TCP's timeout."""
        self._drop_pending()
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    # --- receiving ------------------------------------------------------------------------------

    async def tap(self, subject: str, deliver: Deliver) -> int:
        """Call *deliver(subject, reply, payload, headers)* for each message on *subject*.

        It runs inside the reader: it must not block. An exception in it ends the connection. The tap
        lives on over reconnects. Returns what `untap` takes.
        """
        self._require_connected()
        self._sid += 1
        sid = self._sid
        self.taps[sid] = deliver
        self._subs[sid] = nats.aio.subscription.Subscription(self, sid, subject)
        self.write(b"SUB %b  %d\r\n" % (subject.encode(), sid))
        return sid

    async def untap(self, sid: int) -> None:
        """No call of the tap's function after this returns; messages under way are dropped."""
        self.taps.pop(sid, None)
        if self._subs.pop(sid, None) is not None and self.is_connected:
            await self._send_unsubscribe(sid)

    def inbox(self) -> bytes:
        """A subject that nobody else listens on."""
        return b"%b.%d" % (self._inbox, next(self._tokens))

    # --- sending --------------------------------------------------------------------------------

    def write(self, frames: bytes) -> None:
        """Put ready-made frames on the wire. Raises Disconnected; never keeps them for a later connection."""
        self._require_connected()
        self._pending.append(frames)
        self._pending_data_size += len(frames)
        queue = self._flush_queue
        if queue is not None and queue.empty():
            queue.put_nowait(asyncio.get_running_loop().create_future())

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the socket to take them."""
        return self._pending_data_size

    def ask(self, subject: str, payload: bytes = b"", headers: bytes = b"") -> asyncio.Future[Reply]:
        """Send a request; the future brings the reply, or Disconnected. Cancel it when it is not wanted."""
        self._require_fits(payload)
        token, future = self._expect(subject)
        reply = self._inbox + b"." + token
        if headers:
            self._write_asked(future, frame_hpub(subject.encode(), headers, payload, reply))
        else:
            self._write_asked(future, frame_pub(subject.encode(), payload, reply))
        return future

    async def call(
        self, subject: str, payload: bytes = b"", *, headers: bytes = b"", timeout_s: float = 5.0
    ) -> Reply:
        """Request and reply. Raises NoAnswer, also when nobody listens, and Disconnected."""
        reply = await within(self.ask(subject, payload, headers), timeout_s, subject)
        if reply.status == b"503":
            raise NoAnswer(f"{subject}: nobody answers on this subject")
        return reply

    async def call_several(
        self, subject: str, payload: bytes = b"", *, timeout_s: float = 5.0
    ) -> list[Reply]:
        """A request with many replies, up to an empty one with a status: that one ends the list."""
        token, future = self._expect(subject)
        self._several[token] = []
        self._write_asked(future, frame_pub(subject.encode(), payload, self._inbox + b"." + token))
        try:
            last = await within(future, timeout_s, subject)
            return [*self._several[token], last]
        finally:
            del self._several[token]

    async def api(self, name: str, request: object = None, *, timeout_s: float = 5.0) -> dict[str, Any]:
        """One call of JetStream's API, *name* without ``$JS.API.``. Raises as `call`, and ApiError."""
        payload = b"" if request is None else msgspec.json.encode(request)
        return checked_answer(name, await within(self.ask(f"$JS.API.{name}", payload), timeout_s, name))

    async def store(
        self, subject: str, payload: bytes, *, headers: bytes = b"", timeout_s: float = 5.0
    ) -> tuple[int, bool]:
        """Publish into a stream and wait: (sequence, whether it was there already)."""
        reply = await within(self.ask(subject, payload, headers), timeout_s, subject)
        ack = checked_ack(subject, reply)
        return ack.seq, ack.duplicate

    def start_all(self, messages: list[Message], *, repeats: bool = False) -> asyncio.Future[None]:
        """Send messages that are acknowledged one by one; the future ends when all of them are stored.

        Without *repeats* it fails with Repeated when the stream had one of them already. It fails with
        the first error of any; others may then be stored or not. Raises PayloadTooLarge, Disconnected.

        Measured against an atomic batch (2.15.1, file store, one replica, 2 in flight, the same run): 8.6 k/s
        against 0.4 k/s one at a time, 63 k/s against 29 k/s at 500. The server stages each atomic batch in a
        store of its own on disk, 1.6 ms of its time.
        """
        self._require_fits(max((message[2] for message in messages), key=len))
        token, stored = self._expect(messages)
        self._acks[token] = _Acks(len(messages), stored, repeats)
        stored.add_done_callback(lambda _: self._acks.pop(token, None))
        self._write_asked(stored, frames_stored(messages, self._inbox + b"." + token))
        return cast(asyncio.Future[None], stored)

    async def cut(self) -> None:
        """End the session at once: what waits to be sent is dropped, not flushed as `close` does."""
        self._abort()
        if self._flush_queue is not None:  # else it never got as far as a server
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CUT_S_MAX):
                    await self.close()
        self.ended.set()

    # --- the inside -----------------------------------------------------------------------------

    @property
    def where(self) -> str:
        """The server's address, for messages."""
        url = self.connected_url
        return f"nats://{url.hostname}:{url.port}" if url is not None else "the NATS server"

    def _require_connected(self) -> None:
        if not self.is_connected:
            raise Disconnected(f"not connected to {self.where}: nothing can be published")

    def _require_fits(self, payload: bytes) -> None:
        if len(payload) > self._max_payload:
            raise PayloadTooLarge(
                f"a message of {len(payload)} bytes is above the server's max_payload ({self._max_payload}): "
                "raise it, or lower REPORT_BYTES_MAX"
            )

    def _expect(self, asked: str | list[Message]) -> tuple[bytes, asyncio.Future[Reply]]:
        token = b"%d" % next(self._tokens)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._replies[token], self._asked[token] = future, asked
        future.add_done_callback(lambda _: self._forget(token))
        return token, future

    def _forget(self, token: bytes) -> None:
        self._replies.pop(token, None)
        self._asked.pop(token, None)

    def _write_asked(self, future: asyncio.Future[Reply], frames: bytes) -> None:
        try:
            self.write(frames)
        except Disconnected:
            future.cancel()
            raise

    def _deliver_reply(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        token = subject[self._prefix_length :]
        acks = self._acks.get(token)
        if acks is not None:
            acks.take(payload, headers)
            return
        future = self._replies.get(token)
        if future is None or future.done():
            return
        several = self._several.get(token)
        if several is None or (not payload and status_of(headers)):
            future.set_result(Reply(payload, headers))
        else:
            several.append(Reply(payload, headers))

    def _fail(self, error: BaseException) -> None:
        """Our own function broke inside the reader: end the session, loudly."""
        self.failure = error
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": "a tap failed; its connection ends", "exception": error})
        self._closing = loop.create_task(self.close())

    async def open_inbox(self) -> None:
        self._inbox = self.new_inbox().encode()
        self._prefix_length = len(self._inbox) + 1
        await self.tap(f"{self._inbox.decode()}.*", self._deliver_reply)

    def fail_replies(self) -> None:
        """Every reply that is still awaited fails: it cannot come any more."""
        lost = f"the connection to {self.where} ended before the reply came"
        for future in list(self._replies.values()):
            if not future.done():
                future.set_exception(Disconnected(lost))


class _Acks:
    """The acknowledgements of messages that were sent together."""

    __slots__ = ("_left", "_repeats", "_stored")

    def __init__(self, count: int, stored: asyncio.Future[Any], repeats: bool) -> None:
        self._left, self._stored, self._repeats = count, stored, repeats

    def take(self, payload: bytes, headers: bytes | None) -> None:
        if self._stored.done():
            return
        # Decoding each takes as long as all the rest; only those that say something unusual are.
        if headers is not None or b'"error"' in payload or (not self._repeats and b'"duplicate"' in payload):
            try:
                ack = checked_ack("publishing", Reply(payload, headers))
                if ack.duplicate and not self._repeats:
                    raise Repeated("a message that was to be new is in its stream already")
            except DefenderError as error:
                self._stored.set_exception(error)
                return
        self._left -= 1
        if self._left == 0:
            self._stored.set_result(None)


def _explained(verb: str, subject: str) -> DefenderError:
    return PermissionRefused(f"the NATS server does not let us {verb} {subject}")


async def within(future: asyncio.Future[T], timeout_s: float, what: str) -> T:
    """The future's result. Raises NoAnswer after *timeout_s*."""
    try:
        async with asyncio.timeout(timeout_s):
            return await future
    except TimeoutError:
        raise NoAnswer(f"{what}: no reply within {timeout_s:g} s (REQUEST_TIMEOUT_S)") from None
