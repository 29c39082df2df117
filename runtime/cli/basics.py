"""``defender config``, ``schema``, ``warm``: what needs no server."""

from __future__ import annotations

import inspect
import logging
import os
import time
from contextlib import nullcontext
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from runtime import config as settings_module
from runtime import wire
from runtime.cli import terminal
from runtime.errors import SettingsError


def run() -> None:
    """Run a defender: claim a stable ID, judge its partitions' reports. The container's entry point."""
    from runtime.supervisor import main

    raise typer.Exit(main([]))


def config(json: Annotated[bool, typer.Option("--json", help="As a JSON array.")] = False) -> None:
    """Show every setting: its value, whether the environment or the default gives it, what it means."""
    settings = settings_module.sources(os.environ)
    if json:
        terminal.print_json(settings)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("variable", "value", "from", "meaning"):
        table.add_column(title, overflow="fold")
    for setting in settings:
        ours = setting.source == "environment"
        table.add_row(
            setting.name, setting.value, setting.source, setting.meaning, style="green" if ours else None
        )
    terminal.tables().print(table)


def schema() -> None:
    """Print the JSON Schema of reports, verdicts and alarms."""
    print(schema_text(), end="")


def schema_text() -> str:
    """The text of ``docs/wire.schema.json``."""
    return f"{msgspec.json.format(msgspec.json.encode(_tidy(wire.json_schema())), indent=2).decode()}\n"


def _tidy(node: Any) -> Any:
    """Descriptions come from docstrings, which only some versions of Python free from their indentation."""
    if isinstance(node, dict):
        return {
            name: inspect.cleandoc(value)
            if name == "description" and isinstance(value, str)
            else _tidy(value)
            for name, value in node.items()
        }
    return [_tidy(value) for value in node] if isinstance(node, list) else node


def warm(json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Compile the kernels into the cache folder that running defenders read (once a machine or image)."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    logging.getLogger("kernels").setLevel(logging.ERROR)  # a miss, of which it warns, is what we are here for
    console = terminal.stderr()
    started_s = time.monotonic()
    with console.status("compiling kernels") if console.is_terminal else nullcontext():
        from kernels import jit

        try:
            written = jit.warm()
        except OSError as error:
            problem = f"cannot write {error.filename or jit.cache_folder()}: {error.strerror}"
            raise SettingsError("NUMBA_CACHE_DIR", problem) from error
    took_s = time.monotonic() - started_s
    folder = str(jit.cache_folder())
    if json:
        loaded = [{"name": k.name, "source": k.source, "took_ms": round(k.took_ms, 1)} for k in jit.status()]
        terminal.print_json(
            {"folder": folder, "written": len(written), "seconds": round(took_s, 3), "kernels": loaded}
        )
        return
    for kernel in jit.status():
        terminal.stdout().print(f"{kernel.name:<24} {kernel.source:<9} {kernel.took_ms:>8.1f} ms")
    terminal.stdout().print(f"{len(written)} written to {folder}, {took_s:.1f} s in all")
