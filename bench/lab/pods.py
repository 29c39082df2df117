"""A pod as the platform sees it: a `defender run` process group, its log, its port, what may befall it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

import msgspec

from bench.lab.errors import LabError
from bench.lab.usage import Process, cpu_s, pss_mb, session
from bench.lab.waiting import until
from runtime.config import Settings
from runtime.lifeline import die_with

if TYPE_CHECKING:
    from bench.lab.image import Image

READY_S_MAX: Final = 20.0
LINES_SHOWN: Final = 3
LINE_SHOWN: Final = 300
"""Characters of a line of the log that an error has."""
DEFENDER: Final = ("-m", "runtime", "run")
OURS: Final = frozenset(name.upper() for name in Settings.__struct_fields__)


def environment(settings: Settings) -> dict[str, str]:
    """The environment from which `settings` would be loaded: this process's, without settings of its own."""
    usual = Settings()
    chosen = {
        name.upper(): str(getattr(settings, name))
        for name in settings.__struct_fields__
        if getattr(settings, name) != getattr(usual, name)
    }
    # A lab in a pod of its own has an API server around it that is none of its pods' business.
    foreign = {
        name: value
        for name, value in os.environ.items()
        if name not in OURS and not name.startswith("KUBERNETES_SERVICE_")
    }
    if "NUMBA_CACHE_DIR" in os.environ:  # a setting of ours, and of this machine, too
        foreign["NUMBA_CACHE_DIR"] = os.environ["NUMBA_CACHE_DIR"]
    return foreign | chosen


def brisk(**changes: Any) -> dict[str, Any]:
    """Settings under which a lost lease, a hung worker and a dead peer are noticed within seconds."""
    return {
        "lease_ttl_s": 4.0,
        "lease_held_s": 2.5,
        "renew_s": 0.4,
        "request_timeout_s": 1.0,
        "heartbeat_ttl_s": 4.0,
        "silence_s": 3.0,
        "leader_ttl_s": 3.0,
        "settle_s": 0.3,
        "hold_down_s": 3.0,
        "successor_wait_s": 2.0,
        "handoff_s": 6.0,
        "pull_expires_s": 5.0,
        "max_defenders": 1,
        "partitions": 16,
        "window": 32,
        "history_depth": 4096,
        "cache_mb": 20,
        **changes,
    }


class _Container(Protocol):
    """A pod's first process, our child."""

    pid: int

    @property
    def returncode(self) -> int | None: ...

    def wait(self) -> int: ...


class _Answer(msgspec.Struct):
    """Of a probe."""

    why: list[str]


def another(settings: Settings, name: str) -> Settings:
    """The settings of a second pod of the same fleet."""
    return msgspec.structs.replace(settings, pod_uid=f"uid-{name}", pod_name=name)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Use(NamedTuple):
    """What a pod took over its life, containers before a restart included."""

    cpu_s: float
    pss_mb: float
    """At its most, of the times that `Pod.use` looked."""


class Life(NamedTuple):
    """One container's life: from when to when, and with what it left."""

    begun_ns: int
    ended_ns: int
    """0 while it runs. The time that its end was noticed: `exit_code` and whatever asks for it notices."""
    exit_code: int | None


class Pod:
    """One pod: a session of processes. It is started when it is made, unless *start* is False, and dies with
    this process, a SIGKILLed one included. A context manager: at its end all of it is killed.

    The log goes to *log_path* and is kept there; without one it is temporary, and shown when the block fails.
    *argv* is what the interpreter runs; *environ* is added to the environment. With an *image* its processes
    are forked from that, else they begin with a new interpreter.

        never started ──start──► running ──leaves, is killed──► left ──start (a restart)──► running
    """

    def __init__(
        self,
        settings: Settings,
        *,
        start: bool = True,
        argv: Sequence[str] = DEFENDER,
        log_path: Path | None = None,
        image: Image | None = None,
        **environ: str,
    ) -> None:
        self.settings = settings
        self._argv, self._environ, self._image = tuple(argv), environ, image
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if log_path is None:
            self._folder = tempfile.TemporaryDirectory(prefix="defender-pod-")
            log_path = Path(self._folder.name) / "pod.log"
        self.log_path = log_path
        self.started_s = 0.0
        """When its container was started, by the monotonic clock."""
        self.refusal = "it was not asked yet"
        """Why the newest `probe` found it not to be as asked; "" when it was."""
        self._process: _Container | None = None
        self._lives: list[Life] = []
        self._port: int | None = None
        self._log_begin = 0
        self._earlier_cpu_s = self._cpu_s = self._pss_mb = 0.0
        if start:
            self.start()

    def start(self) -> Self:
        """Starts the container, or starts it again; `wait_ready` waits for it.

        In the main thread only: the kernel ties the pod's life to the thread that started it.
        """
        assert self._process is None or self.exit_code is not None, "the pod runs already"
        if threading.current_thread() is not threading.main_thread():
            raise LabError(f"start pod {self.settings.pod_name} in the main thread: it dies with its thread")
        settings = msgspec.structs.replace(self.settings, http_host="127.0.0.1", http_port=0)
        environ = {**environment(settings), "LOG_FORMAT": "json", **self._environ}
        self._signal_group(signal.SIGKILL)  # as the platform does, what the container left behind goes, too
        self._port, self.refusal = None, "it was not asked yet"
        self._earlier_cpu_s, self._cpu_s = self._earlier_cpu_s + self._cpu_s, 0.0
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            with self.log_path.open("ab") as log:
                self._log_begin = log.tell()
                self.started_s, begun_ns = time.monotonic(), time.time_ns()
                if self._image is not None:
                    self._process = self._image.fork(self._argv, environ, self.log_path)
                else:
                    self._process = _new_interpreter(self._argv, environ, log.fileno())
        except OSError as error:
            raise LabError(f"pod {self.settings.pod_name} cannot be started: {error}") from error
        self._lives.append(Life(begun_ns, 0, None))
        return self

    # --- what it says ---------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None, "the pod was never started"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        assert self._process is not None, "the pod was never started"
        if self._process.returncode is None and _has_ended(self._process.pid):
            self._count_cpu()  # what a process took is to be read until it has been waited for
            code = self._process.wait()
            self._lives[-1] = self._lives[-1]._replace(ended_ns=time.time_ns(), exit_code=code)
        return self._process.returncode

    @property
    def lives(self) -> list[Life]:
        """Of its containers, the newest last; empty when it was never started."""
        if self._process is not None:
            _ = self.exit_code  # notices the end
        return list(self._lives)

    @property
    def restarts(self) -> int:
        """How often its container was started again."""
        return max(0, len(self._lives) - 1)

    def use(self, members: Iterable[Process] | None = None) -> Use:
        """What it took until now. *members* are its session's processes, for who has looked for them already:
        16 ms of this process's time otherwise, most of it for the memory of four processes."""
        if self._process is not None and self.exit_code is None:
            found = session(self.pid) if members is None else list(members)
            self._count_cpu(found)
            self._pss_mb = max(self._pss_mb, sum(pss_mb(one.pid) for one in found))
        return Use(self._earlier_cpu_s + self._cpu_s, self._pss_mb)

    def _count_cpu(self, members: Iterable[Process] | None = None) -> None:
        # never less than before: what an orphan took goes to init when it dies
        now_s = cpu_s(session(self.pid) if members is None else members)
        self._cpu_s = max(self._cpu_s, now_s)

    def log(self) -> str:
        """What the container of the moment has logged; the file has those before it, too."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(self._log_begin)
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """The log of the container of the moment, or its lines of one event."""
        found = []
        for line in self.log().splitlines():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError:
                fields = {"event": "", "text": line}
            if isinstance(fields, dict) and event in ("", fields.get("event")):
                found.append(fields)
        return found

    def said(self, text: str) -> bool:
        """Whether that log has *text* anywhere."""
        return text in self.log()

    def told(self) -> str:
        """What is known of why it is not Ready: the newest probe's answer, and the log's last lines."""
        last = " | ".join(line[:LINE_SHOWN] for line in self.log().splitlines()[-LINES_SHOWN:])
        state = "" if self.exit_code is None else f"it left with {self.exit_code}; "
        return f"{self.settings.pod_name}: {state}/readyz: {self.refusal or 'yes'}; log: {last or 'empty'}"

    @property
    def port(self) -> int | None:
        """Where it answers; None until it does."""
        if self._port is None and (found := self.lines("listening")):
            self._port = int(found[-1]["port"])
        return self._port

    @property
    def workers(self) -> dict[int, int]:
        """The pid of each worker's newest process."""
        return {line["worker"]: line["pid"] for line in self.lines("worker started")}

    def get(self, path: str) -> tuple[int, str]:
        """(status, body) of a page; status 0 while nobody listens."""
        port = self.port
        if port is None:
            return 0, ""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read().decode()
        except OSError:
            return 0, ""

    async def probe(self, path: str = "/readyz", *, timeout_s: float = 5.0) -> int:
        """The status of a page, 0 while nobody answers; `refusal` has why it is not 200. Unlike `get`, it
        lets others work meanwhile."""
        status, body = await self._ask(path, timeout_s)
        if status == 200:
            self.refusal = ""
        elif status:
            self.refusal = f"{status} {body.decode(errors='replace').strip()}"
            with contextlib.suppress(msgspec.DecodeError):
                self.refusal = "; ".join(msgspec.json.decode(body, type=_Answer).why)
        else:
            self.refusal = body.decode()
        return status

    async def _ask(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        if self.exit_code is not None:
            return 0, f"it left with {self.exit_code}".encode()
        if self.port is None:
            return 0, b"nobody listens"
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n".encode())
                status = await reader.readline()
                _, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return (int(status.split()[1]), body) if status else (0, b"it closed the connection")
        except TimeoutError:
            return 0, f"no answer within {timeout_s:g} s".encode()
        except OSError as error:
            return 0, str(error).encode()
        finally:
            if writer is not None:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    def not_ready(self) -> list[str]:
        """Why /readyz says no; empty when it says yes."""
        status, body = self.get("/readyz")
        if status == 200:
            return []
        return list(json.loads(body)["why"]) if status else ["nobody listens"]

    def is_serving(self) -> bool:
        """Whether every worker serves its partitions (a standby never does)."""
        return self.get("/startupz")[0] == 200 and bool(self.lines("ready"))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that carry *labels*; 0 without any."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{k}="{v}"' in series for k, v in labels.items()):
                total += float(value)
        return total

    # --- waiting --------------------------------------------------------------------------------

    async def wait_serving(self, deadline_s: float = READY_S_MAX) -> Self:
        """Until all of its workers serve. Raises NotInTime, and LabError when it leaves instead."""

        async def serves() -> bool:
            return await self._is_yes("/startupz") and bool(self.lines("ready"))

        await until(serves, deadline_s=deadline_s, what=lambda: f"the pod serves; {self.told()}")
        return self

    async def wait_ready(self, deadline_s: float = READY_S_MAX) -> Self:
        """Until /readyz says yes; so it does of a standby. Raises as `wait_serving` does."""
        await until(
            lambda: self._is_yes("/readyz"),
            deadline_s=deadline_s,
            what=lambda: f"the pod is ready; {self.told()}",
        )
        return self

    async def wait_exit(self, deadline_s: float = 15.0) -> int:
        """Until it has left; its exit code. Raises NotInTime."""
        await until(
            lambda: self.exit_code is not None,
            deadline_s=deadline_s,
            what=lambda: f"the pod leaves; {self.told()}",
        )
        assert self.exit_code is not None
        return self.exit_code

    async def _is_yes(self, path: str) -> bool:
        if self.exit_code is not None:
            raise LabError(f"a pod left that was waited for; {self.told()}")
        return await self.probe(path) == 200

    # --- what befalls it ------------------------------------------------------------------------

    def sigterm(self) -> None:
        """As the platform does it: to the container's first process. Nothing when it has left."""
        self._signal_first(signal.SIGTERM)

    def kill_supervisor(self) -> None:
        """SIGKILL to the supervisor alone. Nothing when it has left."""
        self._signal_first(signal.SIGKILL)

    def kill_worker(self, index: int, signum: signal.Signals = signal.SIGKILL) -> int:
        """Signals a worker's process of the moment; its pid."""
        pid = self.workers[index]
        os.kill(pid, signum)
        return pid

    def kill(self) -> None:
        """SIGKILL to everything of the pod, as a node's death would. Returns when its first process is dead;
        the others are dying."""
        if self._process is None:
            return
        if self.exit_code is None:
            self._count_cpu()
        self._signal_group(signal.SIGKILL)
        while self.exit_code is None:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def freeze(self) -> None:
        """SIGSTOP to everything of the pod."""
        self._signal_group(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT to everything of the pod."""
        self._signal_group(signal.SIGCONT)

    def _signal_first(self, signum: signal.Signals) -> None:
        if self.exit_code is None:  # so nobody has waited for it, and no other has its PID
            os.kill(self.pid, signum)

    def _signal_group(self, signum: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(self.pid, signum)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if self._folder is None:
            return
        if error is not None:
            log = self.log_path.read_text(errors="replace") if self.log_path.exists() else "none"
            print(f"--- log of {self.settings.pod_name}\n{log}")
        self._folder.cleanup()


def _new_interpreter(argv: Sequence[str], environ: dict[str, str], log: int) -> subprocess.Popen[bytes]:
    parent_pid = os.getpid()
    return subprocess.Popen(
        [sys.executable, *argv],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environ,
        start_new_session=True,
        preexec_fn=lambda: die_with(parent_pid),
    )


def _has_ended(pid: int) -> bool:
    """Whether our child has ended; it is not waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
