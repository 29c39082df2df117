"""A warm image: one process that has imported what a defender imports, from which pods are forked.

Starting an interpreter and importing NumPy and numba take 2.8 s of a core a pod, which dozens of pods would
take from those that judge; on nodes of their own they would not. Forked, a pod takes about 0.4 s. The code
that runs is the same: `python -m runtime run` as a new process would run it, its fork server and workers
included. What differs: pages that nobody writes are shared among the pods, and imports are not measured.

    lab (subreaper) ── image ── fork ── fork ── pod, which becomes the lab's child as its parent ends
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import multiprocessing.forkserver
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection, resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import msgspec
from msgspec import Struct

from bench.lab.errors import LabError
from bench.lab.usage import processes
from runtime.lifeline import die_with

PRELOADED: Final = ("runtime.supervisor", "runtime.worker", "runtime.pages", "runtime.cli.app")
WARM_S_MAX: Final = 60.0
"""For the imports, on a machine where the kernels are compiled; see `defender warm`."""
FORK_S_MAX: Final = 10.0
ADOPTED_S_MAX: Final = 5.0
"""From a pod's fork until its parent has ended and the lab has it."""
_PR_SET_CHILD_SUBREAPER: Final = 36
_FILES_MAX: Final = 65_536


class Wanted(Struct, frozen=True):
    """A pod to fork: what the interpreter would run, its environment, where its output goes."""

    argv: list[str]
    environ: dict[str, str]
    log_path: str


class Forked:
    """A process that the image forked; a child of this one. The part of `subprocess.Popen` that pods use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


class Image:
    """The image's process. Made in the main thread: it and what it forks die with the thread."""

    def __init__(self) -> None:
        """Returns when it is warm. Raises LabError."""
        if threading.current_thread() is not threading.main_thread():
            raise LabError("make an image in the main thread: its pods die with the thread that made it")
        _adopt_orphans(True)
        parent_pid = os.getpid()
        self._sessions: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.lab.image"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=lambda: die_with(parent_pid),
        )
        try:
            self._answer(WARM_S_MAX, "the image of the pods to import what they run")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self, argv: Sequence[str], environ: Mapping[str, str], log_path: Path) -> Forked:
        """A process that runs ``python *argv*`` in a session of its own, 10 ms later. Raises LabError."""
        assert self._process.stdin is not None
        wanted = Wanted(list(argv), dict(environ), str(log_path.absolute()))
        try:
            self._process.stdin.write(msgspec.json.encode(wanted) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LabError("the image of the pods has ended: was it killed?") from None
        pid = int(self._answer(FORK_S_MAX, "the image of the pods to fork one"))
        if pid < 0:
            raise LabError(f"no pod can be forked: {os.strerror(-pid)}")
        self._sessions.add(pid)
        return Forked(pid)

    def close(self) -> None:
        """Ends the image, not its pods; waits for their orphans that are dead."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what an image that died did not read
                    pipe.close()
        _adopt_orphans(False)
        for one in list(processes()):
            if one.session in self._sessions and one.pid not in self._sessions:
                _reap(one.pid)

    def _answer(self, seconds: float, what: str) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            raise LabError(f"waited {seconds:g} s for {what}")
        line = self._process.stdout.readline().decode().strip()
        if not line:
            raise LabError(f"waited for {what}, and it ended with {self._process.wait()}")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _adopt_orphans(is_wanted: bool) -> None:
    """What loses its parent below us becomes our child, not init's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(is_wanted), 0, 0, 0):
        raise LabError(
            f"the lab cannot adopt its pods: {os.strerror(ctypes.get_errno())}; run it with --cold"
        )


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # another's, or waited for meanwhile


# --- in the image -----------------------------------------------------------------------------------


def main() -> int:
    """The image: forks a pod for each line that it reads, until there are no more."""
    lab_pid = os.getppid()
    for name in PRELOADED:
        importlib.import_module(name)
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        print(f"the image has {len(threads)} threads, and only one would be forked", file=sys.stderr)
        return 70
    gc.collect()
    gc.freeze()  # looking through it would write to every page that the pods share
    _tell("warm")
    for line in sys.stdin.buffer:
        _tell(str(_forked(msgspec.json.decode(line, type=Wanted), lab_pid)))
    return 0


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _forked(wanted: Wanted, lab_pid: int) -> int:
    """The PID of a new pod, which is the lab's child by now; or minus the error's number."""
    told_r, told_w = os.pipe()
    try:
        between = os.fork()
    except OSError as error:
        between = -(error.errno or errno.EAGAIN)
    if between == 0:
        _fork_pod(wanted, lab_pid, told_w)
    os.close(told_w)
    with os.fdopen(told_r) as told:
        if between < 0:
            return between
        pid = int(told.read())
    os.waitpid(between, 0)  # from here on the pod has another parent
    return pid


def _fork_pod(wanted: Wanted, lab_pid: int, told_w: int) -> NoReturn:
    """Forks the pod, tells its PID, and ends, so that the pod becomes the lab's child."""
    try:
        pid = os.fork()
    except OSError as error:
        pid = -(error.errno or errno.EAGAIN)
    if pid:
        os.write(told_w, str(pid).encode())
        os._exit(0)
    code = 70
    try:
        _become(wanted, lab_pid)
        code = _run(wanted.argv)
    except BaseException:
        traceback.print_exc()  # as an interpreter of its own would, into the pod's log
    finally:
        os._exit(code)  # nothing of the image's is to be torn down here


def _become(wanted: Wanted, lab_pid: int) -> None:
    """A process like one that was started for the pod."""
    os.setsid()
    log = os.open(wanted.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.closerange(3, _FILES_MAX)
    os.environ.clear()
    os.environ.update(wanted.environ)
    end_s = time.monotonic() + ADOPTED_S_MAX
    while os.getppid() != lab_pid:
        if time.monotonic() > end_s:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.001)
    die_with(lab_pid)
    server = multiprocessing.forkserver._forkserver
    server.__class__ = _ForkServer
    multiprocessing.forkserver.ensure_running = server.ensure_running


def _run(argv: list[str]) -> int:
    """What ``python *argv*`` does, for ``-m MODULE …``; its exit code."""
    assert argv[0] == "-m", argv
    sys.argv = argv[1:]
    try:
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


class _ForkServer(multiprocessing.forkserver.ForkServer):
    """CPython's, but for its start: forked off the pod, which has imported what it would import again."""

    def ensure_running(self) -> None:
        own: Any = self
        with own._lock:
            if own._forkserver_pid is None and not self._has_begun:
                self._has_begun = True
                resource_tracker.ensure_running()
                self._begin()
        super().ensure_running()  # one that died is started as CPython does

    _has_begun = False

    def _begin(self) -> None:
        own: Any = self
        address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            alive_r, alive_w = os.pipe()
            pid = os.fork()
            if pid == 0:
                code = 70
                try:
                    os.close(alive_w)
                    multiprocessing.forkserver.main(listener.fileno(), alive_r, own._preload_modules)
                    code = 0
                except SystemExit:
                    code = 0
                finally:
                    os._exit(code)
            os.close(alive_r)
        own._forkserver_address = address
        own._forkserver_alive_fd = alive_w
        own._forkserver_pid = pid


if __name__ == "__main__":
    sys.exit(main())
