"""``defender publish``: reports from a file or standard input to NATS."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

from runtime.cli import terminal
from runtime.cli.reports_file import BadLine, Csv, Ndjson, Outcome, Parser, Publishable
from runtime.config import Settings
from runtime.connection import Connection, within
from runtime.errors import DefenderError, InputError
from runtime.jetstream import PayloadTooLarge, PubAck, Reply, checked_ack

IN_FLIGHT_MAX: Final = 512
"""Reports sent and not yet acknowledged; the server's round trip is hidden from some 100 on."""
BAD_LINES_SHOWN: Final = 20
_CHUNK_BYTES: Final = 1 << 16


class Format(StrEnum):
    """How a file of reports is written."""

    NDJSON = "ndjson"
    CSV = "csv"


@dataclass
class Tally:
    """What became of the lines of a file."""

    published: int = 0
    stored: int = 0
    repeated: int = 0
    bad_lines: int = 0
    seconds: float = 0.0


def publish(
    file: Annotated[str, typer.Argument(help="File of reports; - reads standard input.")],
    format: Annotated[Format | None, typer.Option(help="Default: by the file's ending, else ndjson.")] = None,
    rate: Annotated[
        float, typer.Option(min=0.0, help="Reports a second at most; 0: as fast as they are taken.")
    ] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False,
) -> None:
    """Publish reports from a file.

    NDJSON: one report a line, with a field "chamber". CSV: columns chamber, run, at, chart, count, units;
    rows of the same chamber, run and time make one report. Reports that were published before, within the
    server's duplicate window, are not stored again. Bad lines are told, skipped, and make the exit code 1.
    """
    tally = terminal.run(_publish(terminal.settings(), file, format or _format_of(file), rate))
    if json:
        terminal.print_json(tally)
    else:
        per_s = tally.published / tally.seconds if tally.seconds else 0.0
        bad = f", {tally.bad_lines} bad lines skipped" if tally.bad_lines else ""
        terminal.stdout().print(
            f"{tally.stored} reports stored, {tally.repeated} known already{bad}: "
            f"{tally.seconds:.1f} s, {per_s:,.0f} reports/s"
        )
    if tally.bad_lines:
        raise typer.Exit(1)


def _format_of(file: str) -> Format:
    return Format.CSV if Path(file).suffix.lower() == ".csv" else Format.NDJSON


async def _publish(settings: Settings, file: str, format: Format, rate: float) -> Tally:
    fd, size = _opened(file)
    parser: Parser = Csv() if format is Format.CSV else Ndjson()
    console = terminal.stderr()
    columns = (
        TextColumn("publishing"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[per_s]}"),
    )
    async with terminal.session(settings) as connection:
        await terminal.prepared(connection, settings, settings.names.samples_stream(0))
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
            shown = progress.add_task("", total=size, per_s="")
            sender = _Sender(connection, settings, rate)
            number = 0
            async for line, read_bytes in _lines(fd):
                number += 1
                await sender.take(parser.feed(number, line))
                if read_bytes:
                    progress.update(shown, advance=read_bytes, per_s=sender.speed())
            await sender.take(parser.finish())
            return await sender.finish()


def _opened(file: str) -> tuple[int, int | None]:
    """The file's descriptor and its size, None where that is not known."""
    if file == "-":
        return 0, None
    try:
        return os.open(file, os.O_RDONLY), os.stat(file).st_size
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error


async def _lines(fd: int) -> AsyncIterator[tuple[bytes, int]]:
    """(line, bytes read since the last one) as they come."""
    rest = b""
    read_bytes = 0
    async for chunk in _chunks(fd):
        read_bytes += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line, read_bytes
            read_bytes = 0
    if rest:
        yield rest, read_bytes


async def _chunks(fd: int) -> AsyncIterator[bytes]:
    """Reads ahead a little in a thread, and closes: a pipe that stalls must not stall the connection.

    The thread is a daemon on the bare descriptor, so that an interrupt does not wait for the pipe's writer.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    room = threading.Semaphore(8)

    def pump() -> None:
        chunk: bytes | OSError = b"-"
        while chunk and not isinstance(chunk, OSError):
            room.acquire()
            try:
                chunk = os.read(fd, _CHUNK_BYTES)
            except OSError as error:
                chunk = error
            if loop.is_closed():
                return
            loop.call_soon_threadsafe(chunks.put_nowait, chunk)
        if fd:
            os.close(fd)

    threading.Thread(target=pump, name="reader", daemon=True).start()
    while chunk := await chunks.get():
        if isinstance(chunk, OSError):
            raise InputError(f"cannot read on: {chunk.strerror}") from chunk
        room.release()
        yield chunk


class _Sender:
    """Publishes with a bounded number of reports in flight, at a bounded rate."""

    def __init__(self, connection: Connection, settings: Settings, rate: float) -> None:
        self.tally = Tally()
        self.started = time.monotonic()
        self._connection = connection
        self._names = settings.names
        self._timeout_s = settings.request_timeout_s
        self._rate = rate
        self._flying: deque[tuple[str, asyncio.Future[Reply]]] = deque()

    def speed(self) -> str:
        """Reports a second so far, for the progress bar."""
        return f"{self.tally.published / max(time.monotonic() - self.started, 1e-3):,.0f} reports/s"

    async def take(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, BadLine):
                self._bad(outcome)
            else:
                await self._send(outcome)

    async def finish(self) -> Tally:
        while self._flying:
            await self._land()
        if self.tally.bad_lines > BAD_LINES_SHOWN:
            terminal.stderr().print(f"… {self.tally.bad_lines - BAD_LINES_SHOWN} more bad lines")
        self.tally.seconds = round(time.monotonic() - self.started, 3)
        return self.tally

    def _bad(self, bad: BadLine) -> None:
        self.tally.bad_lines += 1
        if self.tally.bad_lines <= BAD_LINES_SHOWN:
            terminal.stderr().print(f"line {bad.line}: {terminal.clean(bad.problem)}", style="yellow")

    async def _send(self, report: Publishable) -> None:
        if self._rate:
            ahead_s = self.started + self.tally.published / self._rate - time.monotonic()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
        while len(self._flying) >= IN_FLIGHT_MAX:
            await self._land()
        subject = self._names.sample(report.chamber)
        headers = b"Nats-Msg-Id:%b\r\n" % report.msg_id.encode()
        try:
            future = self._connection.ask(subject, report.payload, headers)
        except PayloadTooLarge as error:
            self._bad(BadLine(report.line, str(error)))
            return
        self._flying.append((subject, future))
        self.tally.published += 1

    async def _land(self) -> None:
        subject, future = self._flying.popleft()
        try:
            ack: PubAck = checked_ack(subject, await within(future, self._timeout_s, subject))
        except DefenderError as error:
            for _, other in self._flying:
                other.cancel()
            error.add_note("publish the file again: what is stored is not stored twice")
            raise
        self.tally.stored += not ack.duplicate
        self.tally.repeated += ack.duplicate
