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
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from fleet import until

from runtime.config import Settings

READY_S_MAX = 20.0
OURS = frozenset(name.upper() for name in Settings.__struct_fields__)


def environment(settings: Settings) -> dict[str, str]:
    """The environment from which `settings` would be loaded: this process's, without settings of its own."""
    usual = Settings()
    chosen = {
        name.upper(): str(getattr(settings, name))
        for name in settings.__struct_fields__
        if getattr(settings, name) != getattr(usual, name)
    }
    foreign = {name: value for name, value in os.environ.items() if name not in OURS}
    if "NUMBA_CACHE_DIR" in os.environ:
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


class Pod:
    """One pod. A context manager: at its end all of it is killed, and on failure its log is shown."""

    def __init__(self, settings: Settings, *, start: bool = True, **environ: str) -> None:
        self.settings = settings
        self._start = start
        self._environ = environ
        self._folder = tempfile.TemporaryDirectory(prefix="defender-pod-")
        self.log_path = Path(self._folder.name) / "pod.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0
        self._port: int | None = None

    def start(self) -> Self:
        """Starts the process; `wait_ready` waits for it."""
        assert self._process is None or self._process.poll() is not None, "the pod runs already"
        settings = msgspec.structs.replace(self.settings, http_host="127.0.0.1", http_port=0)
        self.log_path.unlink(missing_ok=True)
        self._port = None
        self.started_s = time.monotonic()
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runtime", "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment(settings), "LOG_FORMAT": "json", **self._environ},
                start_new_session=True,
            )
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
        return self._process.poll()

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """The log so far, or its lines of one event."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        found = []
        for line in text.splitlines():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError:
                fields = {"event": "", "text": line}
            if isinstance(fields, dict) and event in ("", fields.get("event")):
                found.append(fields)
        return found

    def said(self, text: str) -> bool:
        """Whether the log has *text* anywhere."""
        return self.log_path.exists() and text in self.log_path.read_text(errors="replace")

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
        """The status of a page, 0 while nobody answers. Unlike `get`, it lets others work meanwhile."""
        if self.port is None or self.exit_code is not None:
            return 0
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n".encode())
                status = await reader.readline()
                await reader.read()
            return int(status.split()[1]) if status else 0
        except (OSError, TimeoutError):
            return 0
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
        """Until all of its workers serve."""
        await self._wait(self.is_serving, deadline_s, "serves")
        return self

    async def wait_ready(self, deadline_s: float = READY_S_MAX) -> Self:
        """Until /readyz says yes; so it does of a standby."""
        await self._wait(lambda: self.get("/readyz")[0] == 200, deadline_s, "is ready")
        return self

    async def wait_exit(self, deadline_s: float = 15.0) -> int:
        """Until it has left; its exit code."""
        await until(lambda: self.exit_code is not None, deadline_s=deadline_s, what="the pod leaves")
        assert self.exit_code is not None
        return self.exit_code

    async def _wait(self, condition: Any, deadline_s: float, what: str) -> None:
        def met() -> bool:
            assert self.exit_code is None, f"the pod left with {self.exit_code}"
            return bool(condition())

        await until(met, deadline_s=deadline_s, what=f"the pod {what}; it says {self.not_ready()}")

    # --- what befalls it ------------------------------------------------------------------------

    def sigterm(self) -> None:
        """As the platform does it: to the container's first process."""
        os.kill(self.pid, signal.SIGTERM)

    def kill_supervisor(self) -> None:
        """SIGKILL to the supervisor alone."""
        os.kill(self.pid, signal.SIGKILL)

    def kill_worker(self, index: int, signum: signal.Signals = signal.SIGKILL) -> int:
        """Signals a worker's process of the moment; its pid."""
        pid = self.workers[index]
        os.kill(pid, signum)
        return pid

    def kill(self) -> None:
        """SIGKILL to everything of the pod, as a node's death would."""
        if self._process is not None:
            self._signal_group(signal.SIGKILL)
            self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP to everything of the pod."""
        self._signal_group(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_group(signal.SIGCONT)

    def _signal_group(self, signum: signal.Signals) -> None:
        try:
            os.killpg(self.pid, signum)
        except ProcessLookupError:
            return  # nothing of it is left

    def __enter__(self) -> Self:
        return self.start() if self._start else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            log = self.log_path.read_text(errors="replace") if self.log_path.exists() else "none"
            print(f"--- log of {self.settings.pod_name}\n{log}")
        self._folder.cleanup()
