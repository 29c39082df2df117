"""A hint to the CPU to fetch a record that will be written soon. Without the jit it does nothing."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic

from kernels.jit import config, device


def _prefetch(typing_context: Any, record: Any) -> tuple[Signature, Any]:
    """llvm.prefetch: for writing, to keep in all cache levels. A record's value is its address."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        get_or_insert: Any = cgutils.get_or_insert_function
        hint = get_or_insert(
            builder.module,
            ir.FunctionType(ir.VoidType(), [pointer, word, word, word]),
            "llvm.prefetch.p0",
        )
        options = [ir.Constant(word, value) for value in (1, 3, 1)]
        builder.call(hint, [builder.bitcast(arguments[0], pointer), *options])
        return context.get_dummy_value()

    return types.void(record), lower


if config.DISABLE_JIT:

    def prefetch(record: Any) -> None:
        """Nothing to do in plain Python."""

else:
    _prefetch_intrinsic: Any = intrinsic(_prefetch)

    @device
    def prefetch(record: Any) -> None:
        """Ask for the first cache line of ``record`` (an item of a structured array)."""
        _prefetch_intrinsic(record)
