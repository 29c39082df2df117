"""Compiling kernels, with an on-disk cache that running processes only read.

``@kernel(signature)`` compiles at import for the one signature given: from the cache if the file is
there (tens of milliseconds), in memory otherwise (a second), which is counted and logged once. Only
``warm()`` writes, each file under its final name in one step. numba's own cache does not serve: it
wants a writable folder, keys the source by one file, and keeps an index that two writers can break.

A file of the cache holds one kernel for one CPU; its name has the kernel's name and a hash of: all
source of this package, the versions of numba, llvmlite, NumPy and Python, the CPU's name and features. With
``NUMBA_CPU_NAME`` set (an image that runs on many machines) the features are those of that CPU's name,
not the host's, unless ``NUMBA_CPU_FEATURES`` names others.

Importing NumPy starts OpenBLAS threads unless ``OPENBLAS_NUM_THREADS=1``; the program that imports this
package and forks sets it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, cast

import llvmlite
import numba
import numpy as np
from numba.core import compiler
from numba.core.caching import _Cache

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("kernels")

config: Any = numba.config

if config.CPU_NAME and config.CPU_FEATURES is None:
    config.CPU_FEATURES = ""

compile_result: Any = compiler.CompileResult

DIGEST_BYTES = 32

_options: Any = {"error_model": "numpy", "no_cfunc_wrapper": True}
"""Nobody calls kernels from C: a wrapper for that would be compiled for each function."""
_inner: Any = {"no_cpython_wrapper": True}
"""Nor from Python, what only kernels call."""

signed = cast(Callable[[Any], int], np.int64)
"""To a signed integer, in compiled code as in plain Python: numba makes a float of u8 + i8. Of a constant: to
one that is like any other, for numba compiles a function anew for each literal argument."""


@dataclass(frozen=True)
class Status:
    """How one kernel came into this process."""

    name: str
    source: Literal["cache", "compiled", "python"]
    """``python``: compilation is switched off (``NUMBA_DISABLE_JIT``)."""
    took_ms: float


_status: dict[str, Status] = {}
_dispatchers: dict[str, Any] = {}


def cache_folder() -> Path:
    """``NUMBA_CACHE_DIR``, or the user's cache folder."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "tfdc-defender" / "kernels"


def _source_stamp() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    versions = (numba.__version__, llvmlite.__version__, np.__version__, platform.python_version())
    digest.update(repr((versions, sys.implementation.cache_tag)).encode())
    return digest.hexdigest()


SOURCE_STAMP = _source_stamp()


class KernelCache(_Cache):
    """One kernel's files: read at any time, written only through ``write``."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def cache_path(self) -> str:
        return str(cache_folder())

    def path(self, codegen: Any) -> Path:
        key = repr((self._name, SOURCE_STAMP, codegen.magic_tuple()))
        return cache_folder() / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.kernel"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel, or None if there is none that is whole."""
        target_context.refresh()
        path = self.path(target_context.codegen())
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        digest, pickled = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
        if hashlib.sha256(pickled).digest() != digest:
            logger.warning("kernel cache: %s is damaged and not used; run 'defender warm'", path)
            return None
        return compile_result._rebuild(target_context, *pickle.loads(pickled))

    def save_overload(self, sig: Any, compiled: Any) -> None:
        """Nothing: a process that serves must not write (numba calls this after compiling)."""

    def write(self, compiled: Any) -> Path:
        """Store a compiled kernel under its final name in one step."""
        path = self.path(compiled.codegen)
        pickled = pickle.dumps(compiled._reduce(), protocol=pickle.HIGHEST_PROTOCOL)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=path.stem, suffix=".part", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(pickled).digest() + pickled)
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
        return path

    def enable(self) -> None:
        """Always on."""

    def disable(self) -> None:
        """Always on."""

    def flush(self) -> None:
        """Files are named by what they hold: there is nothing to flush."""


def device(function: Callable[P, R]) -> Callable[P, R]:
    """A function that kernels call; compiled into them, so never loaded on its own.

    Inlined by numba, not by LLVM: numba counts references to the arrays that a call passes, atomically.
    That took a third of ``judge``'s time (36 ns a sample instead of 24, all in L1).
    """
    return cast(Callable[P, R], numba.njit(error_model="numpy", inline="always")(function))


def scalar(function: Callable[P, R]) -> Callable[P, R]:
    """A function of numbers that kernels call: compiled once a kernel and linked into it, so it may be long.

    It must not take arrays or records: numba counts references to those (see ``device``).
    """
    return cast(Callable[P, R], numba.njit(**_options)(function))


def rare(function: Callable[P, R]) -> Callable[P, R]:
    """A function over arrays and records that kernels call seldom: compiled once, not into each caller.

    With everything inlined ``judge`` took 35 s to compile.
    """
    return cast(Callable[P, R], numba.njit(**_options, **_inner)(function))


def kernel(signature: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile for exactly this signature, at import: from the cache, or in memory."""

    def compiled(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__
        if config.DISABLE_JIT:
            _status[name] = Status(name, "python", 0.0)
            return function
        started = time.perf_counter()
        dispatcher: Any = numba.njit(**_options)(function)
        dispatcher._cache = KernelCache(name)
        dispatcher.compile(signature)
        dispatcher.disable_compile()
        missed = sum(dispatcher._cache_misses.values()) > 0
        _dispatchers[name] = dispatcher
        took_ms = (time.perf_counter() - started) * 1e3
        if missed:
            _report_miss(name, took_ms)
        _status[name] = Status(name, "compiled" if missed else "cache", took_ms)
        return cast(Callable[P, R], dispatcher)

    return compiled


def _report_miss(name: str, took_ms: float) -> None:
    if misses() == 0:
        logger.warning(
            "kernel cache: %s is not in %s; compiled in memory in %.0f ms (run 'defender warm' once)",
            name,
            cache_folder(),
            took_ms,
        )


def misses() -> int:
    """Kernels that this process had to compile."""
    return sum(1 for status in _status.values() if status.source == "compiled")


def status() -> list[Status]:
    """How each kernel came into this process, in the order of loading."""
    return list(_status.values())


def warm() -> list[Path]:
    """Load every kernel and write to the cache those that it lacks; returns the files written.

    Raises OSError if the folder cannot be written.
    """
    import kernels.judge  # the kernels register themselves
    import kernels.sweep  # noqa: F401

    written = []
    for name, dispatcher in _dispatchers.items():
        if _status[name].source != "compiled":
            continue
        for compiled in dispatcher.overloads.values():
            written.append(dispatcher._cache.write(compiled))
    return written
