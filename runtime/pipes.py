"""What a supervisor and its workers say to each other, over one pipe a worker.

worker                                     supervisor
  │ ── Ready ─────────────────────────────────► │   connected, memory settled: wants its partitions
  │ ◄──────────────────────────────── Assign ── │   partitions with epoch, consumer and position
  │ ── Serving ───────────────────────────────► │   the cache is rebuilt, reports are being judged
  │ ── Ended ─────────────────────────────────► │   the session broke; Ready comes again
  │ ◄───────────────────────────────── Drain ── │   finish what is in hand
  │ ── Released ──────────────────────────────► │   the positions; the worker leaves
  │ ◄───────────────────────────────── Specs ── │   at any time
"""

from __future__ import annotations

from multiprocessing.connection import Connection as Pipe

import msgspec
from msgspec import Struct


class Assignment(Struct, frozen=True):
    """One partition, owned by *epoch*; everything up to *position* is stored."""

    partition: int
    epoch: int
    consumer: str
    position: int


class Assign(Struct, frozen=True, tag=True):
    assignments: list[Assignment]


class Specs(Struct, frozen=True, tag=True):
    """The chart specs (as stored in their bucket; empty: the built-in default) of a revision."""

    revision: int
    document: bytes


class Drain(Struct, frozen=True, tag=True):
    pass


class Ready(Struct, frozen=True, tag=True):
    pass


class Serving(Struct, frozen=True, tag=True):
    """*reports* were read from the history in *rebuild_s*."""

    partitions: list[int]
    reports: int
    rebuild_s: float


class Ended(Struct, frozen=True, tag=True):
    why: str


class Released(Struct, frozen=True, tag=True):
    """The last positions by partition: everything up to them is stored and nothing after."""

    positions: dict[int, int]


class Broken(Struct, frozen=True, tag=True):
    """The worker cannot work, and why; *exit_code* is what the pod should leave with."""

    why: str
    exit_code: int


ToWorker = Assign | Specs | Drain
ToSupervisor = Ready | Serving | Ended | Released | Broken

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
