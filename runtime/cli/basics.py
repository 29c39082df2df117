"""``defender config``, ``schema``, ``warm``: what needs no server."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer
from rich.table import Table

from runtime import config as settings_module
from runtime import wire
from runtime.cli import terminal


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
    console = terminal.stdout()
    console.soft_wrap = False
    console.print(table)


def schema() -> None:
    """Print the JSON Schema of reports, verdicts and alarms."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(wire.json_schema()), indent=2).decode())


def warm(json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Compile the kernels into the cache folder that running defenders read (once a machine or image)."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    console = terminal.stderr()
    started = time.monotonic()
    with console.status("compiling kernels") if console.is_terminal else console.capture():
        import kernels.judge  # noqa: F401 - the import compiles them
        from kernels import jit

        files = jit.warm()
    took_s = time.monotonic() - started
    if json:
        kernels_ = [
            {"name": k.name, "source": k.source, "took_ms": round(k.took_ms, 1)} for k in jit.status()
        ]
        folder = str(jit.cache_folder())
        terminal.print_json({"folder": folder, "written": len(files), "seconds": took_s, "kernels": kernels_})
        return
    out = terminal.stdout()
    for kernel in jit.status():
        out.print(f"{kernel.name:<24} {kernel.source:<9} {kernel.took_ms:>8.1f} ms")
    out.print(f"{len(files)} kernels in {jit.cache_folder()}, {took_s:.1f} s")
