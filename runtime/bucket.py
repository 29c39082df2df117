"""One key-value bucket: read, compare-and-set, and a live view of all its keys.

Writes are decided by the server's comparison of revisions, never by a read before (reads can be stale).
`change` is the one way to turn a value into the next: read, pure update, compare-and-set, try again.

A key that is deleted, or that expired with a marker, has no value but has a revision, and the server
compares with that: `create` takes it from there, so that an expired claim can be taken at once.

`watch` keeps a `View`: events as they come, and all keys read anew at intervals, after a reconnection and
when the server falls silent, so that a missed event heals. So does a bucket that was deleted and made anew,
whose revisions start at 1 again; one that is deleted and stays so can be *repaired* by who watches it.
"""

from __future__ import annotations

import asyncio
import contextlib
from base64 import b64decode
from collections.abc import Awaitable, Callable
from enum import Enum
from random import Random
from typing import Any, Final, Literal, NamedTuple

from runtime import log
from runtime.bus import (
    TRANSIENT,
    ApiError,
    Connection,
    Disconnected,
    NotFound,
    Reply,
    WrongLastSequence,
    backoff_s,
    delivery_of,
    header,
    status_of,
    within,
)
from runtime.errors import DefenderError

REREAD_S: Final = 10.0
IDLE_BEAT_S: Final = 2.0
"""The server tells at this interval that a bucket is quiet."""
SILENT_S_MAX: Final = 5.0
"""A view that has heard nothing for so long has lost its consumer, and reads anew."""
CHECK_S: Final = 0.5
RETRY_FIRST_S: Final = 0.005
RETRY_MOST_S: Final = 0.5
CHANGE_TRIES_MAX: Final = 30
_LOG = log.get("bucket")

Repair = Callable[[], Awaitable[None]]
"""Makes the buckets that are missing (`resources.ensure`)."""


class Conflict(DefenderError):
    """A compare-and-set lost: the key has another revision than the one that was expected."""

    exit_code = 69
    temporary = True

    def __init__(self, bucket: str, key: str, expected: int) -> None:
        super().__init__(f"bucket {bucket}: {key} is not at revision {expected} any more: another wrote it")
        self.key = key
        self.expected = expected


class Keep(Enum):
    """What an update returns to leave the key as it is."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


class Entry(NamedTuple):
    """A key as it stands; *value* is None when it was deleted or has expired, the revision counts still."""

    key: str
    value: bytes | None
    revision: int


class Bucket:
    """A key-value bucket by its name. Every method may raise the TRANSIENT errors."""

    def __init__(self, connection: Connection, name: str, *, random: Random, timeout_s: float = 5.0) -> None:
        self.name = name
        self._connection = connection
        self._random = random
        self._timeout_s = timeout_s
        self._prefix = f"$KV.{name}."

    async def get(self, key: str) -> Entry | None:
        """The key's last entry; None when the bucket has never heard of it, or has forgotten."""
        subject = f"$JS.API.DIRECT.GET.KV_{self.name}.{self._prefix}{key}"
        reply = await self._connection.call(subject, timeout_s=self._timeout_s)
        if reply.status == b"404":
            return None
        return Entry(key, _value(reply), int(header(reply.headers, b"Nats-Sequence") or 0))

    async def get_from_leader(self, key: str) -> Entry | None:
        """As `get`, but from the leader of the bucket's stream: never stale, and dearer."""
        try:
            answer = await self._connection.api(
                f"STREAM.MSG.GET.KV_{self.name}",
                {"last_by_subj": self._prefix + key},
                timeout_s=self._timeout_s,
            )
        except NotFound:
            return None
        message = answer["message"]
        reply = Reply(b64decode(message.get("data", "")), b64decode(message.get("hdrs", "")) or None)
        return Entry(key, _value(reply), message["seq"])

    async def put(self, key: str, value: bytes) -> int:
        """Write whatever is there; the new revision. Only for keys with one writer."""
        seq, _ = await self._connection.store(self._prefix + key, value, timeout_s=self._timeout_s)
        return seq

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Write if the key is at *revision* (0: not there); the new revision. Raises Conflict."""
        return await self._compare_and_set(key, value, revision, b"")

    async def create(self, key: str, value: bytes) -> int:
        """Write if the key has no value: never written, deleted or expired. Raises Conflict."""
        try:
            return await self.update(key, value, 0)
        except Conflict:
            entry = await self.get(key)
            if entry is None or entry.value is not None:
                raise
            return await self.update(key, value, entry.revision)

    async def delete(self, key: str, revision: int) -> int:
        """Delete if the key is at *revision*; the revision of the deletion. Raises Conflict."""
        return await self._compare_and_set(key, b"", revision, b"KV-Operation:DEL\r\n")

    async def change(
        self, key: str, update: Callable[[bytes | None], bytes | Literal[Keep.KEEP] | None]
    ) -> Entry:
        """Turn the key's value into ``update(value)``; None deletes, KEEP leaves it. What stands then.

        A value that equals the old one is written all the same: the revision rises.

        *update* is pure and is called again when another wrote in between. Raises Conflict when that
        happens 30 times in a row.
        """
        for attempt in range(CHANGE_TRIES_MAX):
            entry = await self.get(key) or Entry(key, None, 0)
            value = update(entry.value)
            if value is KEEP or (value is None and entry.value is None):
                return entry
            with contextlib.suppress(Conflict):
                if value is None:
                    return Entry(key, None, await self.delete(key, entry.revision))
                return Entry(key, value, await self.update(key, value, entry.revision))
            await asyncio.sleep(backoff_s(attempt, RETRY_FIRST_S, RETRY_MOST_S, self._random))
        raise Conflict(self.name, key, entry.revision)

    async def entries(self, pattern: str = ">") -> dict[str, Entry]:
        """All keys that match *pattern*, as they stand, in one pass; deleted and expired ones too."""
        found: dict[str, Entry] = {}
        reading = await self._follow(pattern, lambda entry: found.__setitem__(entry.key, entry))
        try:
            await within(reading.complete, self._timeout_s, f"bucket {self.name}")
        finally:
            await reading.stop()
        return found

    async def watch(
        self,
        on_change: Callable[[Entry], None],
        *,
        pattern: str = ">",
        reread_s: float = REREAD_S,
        repair: Repair | None = None,
    ) -> View:
        """A live view, complete when this returns; *on_change* gets each entry that is new to it.

        *repair* is called when the bucket is found missing later.
        """
        view = View(self, on_change, pattern, reread_s, repair)
        await view.reread()
        view.begin()
        return view

    async def _compare_and_set(self, key: str, value: bytes, revision: int, lines: bytes) -> int:
        expected = b"%bNats-Expected-Last-Subject-Sequence:%d\r\n" % (lines, revision)
        try:
            seq, _ = await self._connection.store(
                self._prefix + key, value, headers=expected, timeout_s=self._timeout_s
            )
        except WrongLastSequence:
            raise Conflict(self.name, key, revision) from None
        return seq

    async def _follow(self, pattern: str, on_entry: Callable[[Entry], None]) -> _Following:
        """Deliver the last entry of each key, then each new one."""
        following = _Following(self._connection, self.name, on_entry)
        await following.start(f"{self._prefix}{pattern}", len(self._prefix), self._timeout_s)
        return following


class _Following:
    """One ephemeral push consumer on a bucket's stream."""

    def __init__(self, connection: Connection, bucket: str, on_entry: Callable[[Entry], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.complete: asyncio.Future[None] = self._loop.create_future()
        self.heard_s = self._loop.time()
        self._connection = connection
        self._stream = f"KV_{bucket}"
        self._on_entry = on_entry
        self._prefix_length = 0
        self._sid = 0
        self._consumer = ""

    async def start(self, pattern: str, prefix_length: int, timeout_s: float) -> None:
        self._prefix_length = prefix_length
        inbox = self._connection.new_inbox()
        self._sid = await self._connection.tap(inbox, self._deliver)
        config: dict[str, Any] = {
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "filter_subject": pattern,
            "idle_heartbeat": int(IDLE_BEAT_S * 1e9),
        }
        try:
            answer = await self._connection.api(
                f"CONSUMER.CREATE.{self._stream}",
                {"stream_name": self._stream, "config": config},
                timeout_s=timeout_s,
            )
        except BaseException:
            await self._connection.untap(self._sid)
            raise
        self._consumer = answer["name"]
        if not answer["num_pending"] and not answer["delivered"]["consumer_seq"]:
            self._completed()

    def _deliver(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        self.heard_s = self._loop.time()
        if status_of(headers):
            return
        delivery = delivery_of(reply)
        key = subject[self._prefix_length :].decode()
        value = payload if headers is None else _value(Reply(payload, headers))
        self._on_entry(Entry(key, value, delivery.seq))
        if not delivery.pending:
            self._completed()

    def _completed(self) -> None:
        if not self.complete.done():
            self.complete.set_result(None)

    async def stop(self) -> None:
        """No entry comes after this. The server forgets the consumer; if it cannot be told, after 5 s."""
        self.complete.cancel()
        await self._connection.untap(self._sid)
        with contextlib.suppress(Disconnected):
            self._connection.ask(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}").cancel()


class View:
    """The live entries of a bucket, by key. Made by `Bucket.watch`; end it with `stop`."""

    def __init__(
        self,
        bucket: Bucket,
        on_change: Callable[[Entry], None],
        pattern: str,
        reread_s: float,
        repair: Repair | None = None,
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self._bucket = bucket
        self._repair = repair
        self._on_change = on_change
        self._pattern = pattern
        self._reread_s = reread_s
        self._following: _Following | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_reading())

    async def reread(self) -> None:
        """Read all keys anew and follow from there. Raises the TRANSIENT errors."""
        before = set(self.entries)
        seen: set[str] = set()
        lower: dict[str, Entry] = {}

        def note(entry: Entry) -> None:
            seen.add(entry.key)
            known = self.entries.get(entry.key)
            if known is not None and (known.revision > entry.revision or _contradicts(known, entry)):
                lower[entry.key] = entry
            else:
                self._take(entry)

        following = await self._bucket._follow(self._pattern, note)
        try:
            await within(following.complete, self._bucket._timeout_s, f"bucket {self._bucket.name}")
            if lower and await self._went_back(next(iter(lower))):
                _LOG.error("revisions went back: was the bucket made anew?", bucket=self._bucket.name)
                for entry in lower.values():
                    self.entries[entry.key] = entry
                    self._on_change(entry)
        except BaseException:
            await following.stop()
            raise
        lower.clear()
        previous, self._following = self._following, following
        if previous is not None:
            await previous.stop()
        for key in before - seen:
            # Its marker has expired too: the bucket knows nothing of the key any more.
            gone = self.entries.pop(key)
            if gone.value is not None:
                self._on_change(Entry(key, None, 0))

    async def refresh(self, key: str) -> None:
        """Read one key now. Raises the TRANSIENT errors."""
        entry = await self._bucket.get(key)
        if entry is not None:
            self._take(entry)

    async def _went_back(self, key: str) -> bool:
        """Whether the bucket itself has an older entry than we know; a replica that lags has one too."""
        entry = await self._bucket.get_from_leader(key)
        known = self.entries[key]
        return entry is None or entry.revision < known.revision or _contradicts(known, entry)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._following is not None:
            await self._following.stop()

    def _take(self, entry: Entry) -> None:
        known = self.entries.get(entry.key)
        if known is None or known.revision < entry.revision:
            self.entries[entry.key] = entry
            self._on_change(entry)

    async def _keep_reading(self) -> None:
        cause = ""
        loop, connection = asyncio.get_running_loop(), self._bucket._connection
        reconnects, read_s = connection.stats["reconnects"], loop.time()
        while True:
            await asyncio.sleep(min(self._reread_s, CHECK_S))
            heard_s = self._following.heard_s if self._following is not None else read_s
            quiet = reconnects == connection.stats["reconnects"] and loop.time() - heard_s < SILENT_S_MAX
            if quiet and loop.time() - read_s < self._reread_s:
                continue
            try:
                before = connection.stats["reconnects"]
                await self.reread()
                cause, reconnects, read_s = "", before, loop.time()
            except (ApiError, *TRANSIENT) as error:
                if str(error) != cause:
                    cause = str(error)
                    _LOG.warning("bucket cannot be read anew", bucket=self._bucket.name, cause=cause)
                if self._repair is not None and isinstance(error, NotFound):
                    await self._repaired(self._repair)

    async def _repaired(self, repair: Repair) -> None:
        try:
            await repair()
            _LOG.error("the bucket was gone; it is made anew", bucket=self._bucket.name)
        except TRANSIENT as error:
            _LOG.warning("a missing bucket is not made anew yet", bucket=self._bucket.name, cause=str(error))
        except DefenderError as error:
            _LOG.error("a missing bucket cannot be made anew", bucket=self._bucket.name, cause=str(error))
            await asyncio.sleep(self._reread_s)


def _contradicts(known: Entry, entry: Entry) -> bool:
    """The same revision, another value: they are not of the same bucket."""
    return known.revision == entry.revision and known.value != entry.value


def _value(reply: Reply) -> bytes | None:
    deleted = header(reply.headers, b"KV-Operation") in (b"DEL", b"PURGE")
    return None if deleted or header(reply.headers, b"Nats-Marker-Reason") else reply.payload
