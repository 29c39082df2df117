"""The way from a supervisor to a forked worker, without importing in the supervisor what workers need.

The supervisor imports neither numba nor NumPy: the fork server does, before anything is forked.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from types import ModuleType
from typing import Any, Final

from runtime import log
from runtime.config import History, Settings
from runtime.errors import InputError

_WORKER: Final = "runtime.worker"
_CASSANDRA: Final = "runtime.history.cassandra"
"""With the driver, whose import takes 0.2 s; it starts no thread before a worker connects."""


class Descriptor:
    """A file descriptor that goes along to a worker when it is pickled for it, and has another number there.

    Made a `DupFd` only while the process is being started, it travels with the fork server's request; made
    before, the worker would have to fetch it from a thread of the supervisor (10-40 ms).
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (DupFd(self.fd),)


def _arrived(descriptor: Any) -> Descriptor:
    return Descriptor(descriptor.detach())


@dataclass(frozen=True)
class Start:
    """What a worker is started with."""

    index: int
    stable_id: str
    settings: Settings
    pipe: Pipe
    memory: Descriptor
    board: Descriptor


def start_server(settings: Settings) -> None:
    """Starts the fork server, which loads the kernels while the supervisor goes on with its claim.

    Raises InputError where its socket has no place.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise InputError(
            "no folder for temporary files can be written, and workers are asked for by a socket there: "
            "mount an emptyDir at /tmp, or point TMPDIR at a folder"
        ) from None
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # importing numpy would start threads
    if settings.numba_cache_dir:
        os.environ["NUMBA_CACHE_DIR"] = settings.numba_cache_dir
    context: Any = multiprocessing.get_context("forkserver")
    store = [_CASSANDRA] if settings.history is History.CASSANDRA else []
    context.set_forkserver_preload([_WORKER, *store])
    forkserver.ensure_running()


async def server_loaded() -> None:
    """Returns when the fork server has loaded the kernels; the loop turns meanwhile.

    To fork before that would block the loop: for 0.4 s, and for 15 s and longer where the kernels must be
    compiled, in which a lease runs out.
    """
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if not loaded.done():
            loaded.set_result(None) if error is None else loaded.set_exception(error)

    def probe() -> None:
        failure: BaseException | None = None
        context: Any = multiprocessing.get_context("forkserver")
        process = context.Process(target=_nothing, name="probe", daemon=True)
        try:
            with _without_main():
                process.start()
            process.join()
        except (OSError, EOFError) as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=probe, name="probe", daemon=True).start()
    await loaded


def _nothing() -> None:
    """What the first forked process does."""


def start_worker(
    index: int, stable_id: str, settings: Settings, memory_fd: int, board_fd: int
) -> tuple[BaseProcess, Pipe]:
    """Forks a worker; its process, and our end of the pipe to it."""
    ours, theirs = multiprocessing.Pipe()
    start = Start(index, stable_id, settings, theirs, Descriptor(memory_fd), Descriptor(board_fd))
    context: Any = multiprocessing.get_context("forkserver")
    process: BaseProcess = context.Process(target=enter, args=(start,), name=f"worker-{index}")
    with _without_main():
        process.start()
    theirs.close()
    return process, ours


@contextmanager
def _without_main() -> Iterator[None]:
    """multiprocessing would run the program's main module again in each worker; ours need nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def enter(start: Start) -> None:
    """The first function of a forked worker."""
    preloaded = _WORKER in sys.modules  # CPython says nothing when a preload fails
    from runtime import worker

    if not preloaded:
        log.get("worker").warning("the fork server did not preload the kernels", worker=start.index)
    worker.main(start)
