"""What a supervisor and its workers say to each other, over one pipe a worker.

worker                                     supervisor
  │ ── Ready ─────────────────────────────────► │   connected, memory settled: partitions may come
  │ ◄──────────────────────────────── Assign ── │   serve these, too
  │ ── Serving ───────────────────────────────► │   of each: its history is in memory, its reports are judged
  │ ◄────────────────────────────────── Copy ── │   read these ahead, beside the live work
  │ ── Copied ────────────────────────────────► │   of each; it is still not served
  │ ◄──────────────────────────────── Forget ── │   these will not come after all: drop what was copied
  │ ◄───────────────────────────────── Yield ── │   stop serving these
  │ ── Yielded ───────────────────────────────► │   of each: its position; nothing more is published of it
  │ ── Ended ─────────────────────────────────► │   the session broke, it serves nothing; Ready comes again
  │ ◄───────────────────────────────── Drain ── │   finish what is in hand of all, and leave
  │ ── Released ──────────────────────────────► │   the positions; the worker leaves
  │ ◄───────────────────────────────── Specs ── │   at any time

A session has a number, which `Ready` tells and which no other session of the same worker (counted over its
deaths) has. Words of another session than the present one are ignored by both sides: they crossed its end.
"""

from __future__ import annotations

from multiprocessing.connection import Connection as Pipe

import msgspec
from msgspec import Struct


class Assignment(Struct, frozen=True):
    """One partition, owned by *epoch*; everything up to *position* is stored.

    *before* is the epoch that this one replaced in the partition's record, whoever had it. A worker that
    served the partition with that very epoch (before its session broke, or it died) still has it in memory,
    and nobody published since; else it reads the history. 0, not known: it reads it.
    """

    partition: int
    epoch: int
    consumer: str
    position: int
    before: int = 0


class Assign(Struct, frozen=True, tag=True):
    """Serve these, besides those that are served already."""

    session: int
    assignments: list[Assignment]


class Source(Struct, frozen=True):
    """Who serves a partition: the pod's worker, and its epoch."""

    pod_uid: str
    worker: int
    epoch: int


class Copy(Struct, frozen=True, tag=True):
    """Read these ahead, which others serve yet; an `Assign` then takes what came since. From the memory of
    whoever serves them, where *sources* (by partition) tells, else from the history."""

    session: int
    partitions: list[int]
    sources: dict[int, Source] = {}


class Forget(Struct, frozen=True, tag=True):
    """Drop what is in memory of these; those that are served, or assigned, are not meant."""

    session: int
    partitions: list[int]


class Yield(Struct, frozen=True, tag=True):
    """Stop serving these, and forget them; what is in hand and not judged comes again to the next owner."""

    session: int
    partitions: list[int]


class Specs(Struct, frozen=True, tag=True):
    """The chart specs (as stored in their bucket; empty: the built-in default) of a revision."""

    revision: int
    document: bytes


class Drain(Struct, frozen=True, tag=True):
    pass


class Ready(Struct, frozen=True, tag=True):
    session: int


class Serving(Struct, frozen=True, tag=True):
    """*rebuild_s* after its assignment; *reports* were read from the history for it (0: it was in memory)."""

    session: int
    partitions: list[int]
    reports: int
    rebuild_s: float


class Copied(Struct, frozen=True, tag=True):
    """*reports* of it are in memory, as far as there was room."""

    session: int
    partition: int
    reports: int


class Yielded(Struct, frozen=True, tag=True):
    """By partition, everything up to here is stored; 0 for one that was not assigned in this session."""

    session: int
    positions: dict[int, int]


class Ended(Struct, frozen=True, tag=True):
    session: int
    why: str


class Released(Struct, frozen=True, tag=True):
    """The last positions by partition: everything up to them is stored, and nothing more is published."""

    positions: dict[int, int]


class Broken(Struct, frozen=True, tag=True):
    """The worker cannot work, and why; *exit_code* is what the pod should leave with."""

    why: str
    exit_code: int


ToWorker = Assign | Copy | Forget | Yield | Specs | Drain
OfSession = Serving | Copied | Yielded | Ended
ToSupervisor = Ready | OfSession | Released | Broken

_to_worker = msgspec.msgpack.Decoder(ToWorker)
_to_supervisor = msgspec.msgpack.Decoder(ToSupervisor)
_encoder = msgspec.msgpack.Encoder()


def send(pipe: Pipe, message: ToWorker | ToSupervisor) -> None:
    """Raises BrokenPipeError or ConnectionResetError when nobody is at the other end."""
    pipe.send_bytes(_encoder.encode(message))


def receive_as_worker(pipe: Pipe) -> ToWorker:
    """Raises EOFError when the supervisor is gone."""
    word: ToWorker = _to_worker.decode(pipe.recv_bytes())
    return word


def receive_as_supervisor(pipe: Pipe) -> ToSupervisor:
    """Raises EOFError when the worker is gone."""
    word: ToSupervisor = _to_supervisor.decode(pipe.recv_bytes())
    return word
