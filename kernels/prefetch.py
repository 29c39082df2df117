"""A hint to the CPU to fetch a cache line that will be written soon. Without the jit it does nothing."""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from kernels.jit import device


def _prefetch(typing_context: Any, array: Any, index: Any) -> tuple[Signature, Any]:
    """llvm.prefetch of item ``index`` of the flat ``array``: for writing, to keep in all cache levels."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        array_struct = make_array(array_type)(context, builder, arguments[0])
        size = context.get_constant(types.intp, array_type.dtype.size)
        address = cgutils.pointer_add(builder, array_struct.data, builder.mul(arguments[1], size))
        bytes_pointer = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        hint = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [bytes_pointer, word, word, word]),
            "llvm.prefetch.p0",
        )
        constants = [ir.Constant(word, value) for value in (1, 3, 1)]
        builder.call(hint, [builder.bitcast(address, bytes_pointer), *constants])
        return context.get_dummy_value()

    return types.void(array, types.intp), lower


if numba.config.DISABLE_JIT:

    def prefetch(array: Any, index: int) -> None:
        """Nothing to do in plain Python."""

else:
    _prefetch_intrinsic = intrinsic(_prefetch)

    @device
    def prefetch(array: Any, index: int) -> None:
        """Ask for the cache line at ``array[index]`` (C-contiguous; ``index`` counts items)."""
        _prefetch_intrinsic(array, index)
