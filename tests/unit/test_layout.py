"""The shape of the code: who may import whom, how long things may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("runtime", "kernels", "bench/lab")
SOURCES = sorted(path for part in OURS for path in ROOT.glob(f"{part}/**/*.py"))
MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

PURE = {
    "alarms": ("runtime.specs", "runtime.wire"),
    "examine": ("runtime.wire", "runtime.names", "runtime.judge"),
    "frames": (),
    "intake": ("runtime.frames",),
    "names": (),
    "outputs": (),
    "policy": ("runtime.names", "runtime.records", "runtime.ring"),
    "ring": (),
    "specs": (
        *("runtime.errors", "runtime.names"),
        *("runtime.specs_designs", "runtime.specs_methods", "runtime.specs_problems"),
    ),
    "specs_adopt": ("runtime.specs", "runtime.specs_methods"),
    "specs_advice": ("runtime.specs", "runtime.specs_adopt", "runtime.specs_methods"),
    "specs_designs": ("runtime.specs_methods",),
    "specs_methods": (),
    "specs_problems": ("runtime.specs", "runtime.specs_methods"),
    "specs_text": ("runtime.specs", "runtime.specs_methods", "runtime.specs_problems"),
    "stored": ("runtime.errors",),
    "wire": ("runtime.names",),
}
"""Pure modules of runtime, with what of runtime they may import."""
NO_EFFECTS = {"asyncio", "socket", "time", "subprocess", "threading", "nats"}


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports anywhere, dotted."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_kernels_import_nothing_but_numpy_numba_and_the_standard_library() -> None:
    for path in ROOT.glob("kernels/*.py"):
        roots = {name.partition(".")[0] for name in imports_of(path)}
        foreign = roots - {"kernels", "numpy", "numba", "llvmlite"} - set(sys.stdlib_module_names)
        assert not foreign, f"{path.name} imports {foreign}"


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_do_no_io_and_read_no_clock(module: str) -> None:
    names = imports_of(ROOT / f"runtime/{module}.py")
    roots = {name.partition(".")[0] for name in names}
    assert not roots & NO_EFFECTS, f"{module} imports {roots & NO_EFFECTS}"
    ours = {".".join(name.split(".")[:2]) for name in names if name.startswith("runtime.")}
    assert ours <= set(PURE[module]), f"{module} imports {ours - set(PURE[module])}"


def test_a_history_store_is_imported_only_where_the_parts_are_put_together() -> None:
    importers = {
        path.name
        for path in SOURCES
        if any(name.startswith("runtime.history.jetstream") for name in imports_of(path))
    }
    assert importers == {"cassandra.py", "stores.py"}


def test_the_supervisor_imports_neither_numba_nor_numpy_nor_what_people_need() -> None:
    """An ID is claimed half a second after exec, so what is slow to import waits."""
    slow = ["numba", "numpy", "cassandra", "aiohttp", "prometheus_client", "typer", "rich", "yaml"]
    code = f"import sys, runtime.supervisor; print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_are_short_and_explain_themselves(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= MODULE_LINES_MAX
    assert ast.get_docstring(tree), "a module says at its top what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"
