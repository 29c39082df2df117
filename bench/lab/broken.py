"""Defenders with one thing broken on purpose, by which the lab proves that it sees.

    python -m bench.lab.broken MODE run     a real `defender run`, but for what MODE takes from it

The product knows nothing of this: its functions are replaced when the supervisor begins and in each worker
before its first line. A function that is not there any more, or takes other arguments, ends the process with
a message: a fault that silently is none would let the lab pass for blind, or for seeing.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bench.lab.errors import LabError
from runtime import fork
from runtime.bucket import Bucket
from runtime.cli import complain, guarded
from runtime.errors import DefenderError, Fenced

if TYPE_CHECKING:
    from runtime.fork import Start
    from runtime.frames import Message

MODES: Final[dict[str, str]] = {
    "put-heartbeat": "the claim is taken and renewed by a plain put: whoever held the ID is overwritten",
    "no-fencing": "a lost lease or partition stops nothing, and verdicts carry message IDs of the pod's own",
    "ack-early": "reports are acknowledged before their verdicts are stored",
}
"""What is broken, by name."""
STORE_LATE_S: Final = 0.05
"""``ack-early``: from a batch's acknowledgement to the sending of its verdicts. Sent together, both would be
in one write to the socket, and no crash could come between them. It bounds a chamber to 20 reports/s."""
_FOREVER_NS: Final = 2**63 - 1


def argv(mode: str) -> tuple[str, ...]:
    """What follows the interpreter on a pod's command line. Raises LabError when there is no such mode."""
    _require_mode(mode)
    return ("-m", "bench.lab.broken", mode, "run")


def main(words: Sequence[str]) -> int:
    """``MODE run``: the exit code of the pod."""

    def run() -> int:
        if len(words) < 2 or words[1] != "run":
            raise LabError(f"usage: python -m bench.lab.broken MODE run; MODE is one of {', '.join(MODES)}")
        mode = words[0]
        _require_mode(mode)
        from runtime import supervisor  # after the usage is told: it takes a while

        break_supervisor(mode)
        complain(f"broken on purpose by {mode}: {MODES[mode]}")
        return supervisor.main(list(words[2:]))

    return guarded(run)


def _require_mode(mode: str) -> None:
    if mode not in MODES:
        raise LabError(f"no way to break a defender is called {mode!r}; there are {', '.join(MODES)}")


# --- into the processes -----------------------------------------------------------------------------


def break_supervisor(mode: str) -> None:
    """Breaks this process, and lets it start broken workers. Raises LabError."""
    if mode in _IN_SUPERVISOR:
        _IN_SUPERVISOR[mode]()
    if mode in _IN_WORKER:
        replace(fork, "enter", lambda _: partial(enter, mode), "start")


def enter(mode: str, start: Start) -> None:
    """The first function of a forked worker, whose memory has the product as it is."""
    _IN_WORKER[mode](start.settings.pod_uid)
    fork.enter(start)


def replace(owner: Any, name: str, make: Callable[[Any], Any], *relied_on: str) -> None:
    """Puts ``make(what is there)`` in the place of *name* of a module or class. Raises as `require`."""
    setattr(owner, name, make(require(owner, name, *relied_on)))


def require(owner: Any, name: str, *relied_on: str) -> Any:
    """What *name* of a module or class is.

    Raises LabError when there is none, or when it lacks one of the parameters *relied_on*.
    """
    found = vars(owner).get(name)
    if found is None:
        raise LabError(
            f"{owner.__name__} has no {name} any more: bench/lab/broken.py must follow the product"
        )
    taken = inspect.signature(found).parameters if relied_on else {}
    lacking = [one for one in relied_on if one not in taken]
    if lacking:
        raise LabError(
            f"{owner.__name__}.{name} takes no {', '.join(lacking)} any more: "
            "bench/lab/broken.py must follow the product"
        )
    return found


# --- put-heartbeat ----------------------------------------------------------------------------------


class PuttingBucket(Bucket):
    """A bucket whose compare-and-set compares nothing."""

    def __init__(self, bucket: Bucket) -> None:
        vars(self).update(vars(bucket))

    async def update(self, key: str, value: bytes, revision: int) -> int:
        return await self.put(key, value)


def _put_claims() -> None:
    from runtime.identity import Claimant

    def begin(original: Any) -> Any:
        def __init__(self: Claimant, bucket: Bucket, *others: Any, **named: Any) -> None:  # noqa: N807
            original(self, PuttingBucket(bucket), *others, **named)  # it is the lease's bucket, too

        return __init__

    replace(Claimant, "__init__", begin, "bucket")


# --- no-fencing -------------------------------------------------------------------------------------


def _stay_when_fenced() -> None:
    from runtime.handoff import Handoffs
    from runtime.pool import Pool
    from runtime.supervisor import Supervisor

    def on_fenced(self: Supervisor, error: Fenced) -> None:
        complain(f"goes on, though fenced: {error}")

    def keep(self: Handoffs, partition: int, part: Any, standing: Any, now_s: float) -> None:
        """Whoever has written the record."""

    def is_anothers(self: Handoffs, part: Any, standing: Any) -> bool:
        return False

    def never_silent(self: Pool, handle: Any) -> float:
        return 0.0  # after a stop of the pod a worker would be aborted that has only not had its turn yet

    replace(Supervisor, "_on_fenced", lambda _: on_fenced, "error")
    replace(Pool, "_silence_s", lambda _: never_silent, "handle")
    replace(Handoffs, "_keep", lambda _: keep, "partition", "part", "standing", "now_s")
    replace(Handoffs, "_is_anothers", lambda _: is_anothers, "part", "standing")


def _publish_whatever_happens(pod_uid: str) -> None:
    from runtime import connection, passage
    from runtime.counters import Board
    from runtime.frames import is_unheard, pull_left
    from runtime.passage import Passage

    def without_end(original: Any) -> Any:
        return property(lambda _: _FOREVER_NS, original.fset)

    def of_its_own(original: Any) -> Any:
        def frames_stored(messages: list[Message], reply: bytes) -> bytes:
            own = [(subject, f"{pod_uid}:{identity}", payload) for subject, identity, payload in messages]
            frames: bytes = original(own, reply)
            return frames

        return frames_stored

    def unmoved(original: Any) -> Any:
        def _pull_status(self: Passage, intake: Any, headers: bytes) -> None:
            # The new owner deleted our consumer; what was delivered is judged all the same.
            if is_unheard(headers) or pull_left(headers) is not None:
                original(self, intake, headers)

        return _pull_status

    def patiently(original: Any) -> Any:
        async def within(future: asyncio.Future[Any], timeout_s: float, what: str) -> Any:
            # A process that stood still finds its time over before it reads the answer that has long come;
            # by that its session ended, and nothing of what it had in hand was published.
            try:
                await asyncio.wait([future], timeout=timeout_s)
            except asyncio.CancelledError:
                future.cancel()
                raise
            return await original(future, timeout_s, what)

        return within

    def never_unanswered(self: Passage, now_s: float) -> float:
        return 0.0  # as above: after a long stop the session would end by it

    replace(Board, "lease_deadline_ns", without_end)
    replace(Passage, "unanswered_s", lambda _: never_unanswered, "now_s")
    replace(passage, "within", patiently, "future", "timeout_s", "what")
    replace(connection, "frames_stored", of_its_own, "messages", "reply")
    replace(Passage, "_pull_status", unmoved, "intake", "headers")


# --- ack-early --------------------------------------------------------------------------------------


def _acknowledge_early(pod_uid: str) -> None:
    from runtime.connection import Connection
    from runtime.passage import Passage

    def first(original: Any) -> Any:
        def _launch(self: Passage, samples: list[Any]) -> bool:
            self._acknowledge(samples)
            launched: bool = original(self, samples)
            return launched

        return _launch

    def late(original: Any) -> Any:
        def start_all(
            self: Connection, messages: list[Message], *, repeats: bool = False
        ) -> asyncio.Future[None]:
            send = partial(original, self, messages, repeats=repeats)
            return send() if repeats else _sent_late(send)  # alarms repeat, verdicts do not

        return start_all

    require(Passage, "_acknowledge", "settled")
    replace(Passage, "_launch", first, "samples")
    replace(Connection, "start_all", late, "messages", "repeats")


def _sent_late(send: Callable[[], asyncio.Future[None]]) -> asyncio.Future[None]:
    """What *send* returns, for what is sent STORE_LATE_S from now, or never if nobody waits any more."""
    loop = asyncio.get_running_loop()
    stored: asyncio.Future[None] = loop.create_future()

    def settle(sent: asyncio.Future[None]) -> None:
        error = None if sent.cancelled() else sent.exception()
        if stored.done():
            return
        if sent.cancelled():
            stored.cancel()
        elif error is not None:
            stored.set_exception(error)
        else:
            stored.set_result(None)

    def start() -> None:
        if stored.done():
            return
        try:
            send().add_done_callback(settle)
        except DefenderError as error:
            stored.set_exception(error)

    loop.call_later(STORE_LATE_S, start)
    return stored


_IN_SUPERVISOR: Final[dict[str, Callable[[], None]]] = {
    "put-heartbeat": _put_claims,
    "no-fencing": _stay_when_fenced,
}
_IN_WORKER: Final[dict[str, Callable[[str], None]]] = {
    "no-fencing": _publish_whatever_happens,
    "ack-early": _acknowledge_early,
}
"""By mode, what breaks a worker of the pod whose UID it gets."""


if __name__ == "__main__":
    from bench.lab import broken  # by its name: workers unpickle `enter` from it, not from __main__

    sys.exit(broken.main(sys.argv[1:]))
