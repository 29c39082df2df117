"""Records by their address: a hint to fetch one, and a row of a window without its array.

numba counts references to each array that a call passes, atomically: two for ``window`` in the loop of
``judge`` took a tenth of its time. A row's address is a number, and functions over it are free to be called.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic

from kernels.jit import config, device, signed
from kernels.state import ENTRY

_entry: Any = numba.from_dtype(ENTRY)


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


def _address(typing_context: Any, record: Any) -> tuple[Signature, Any]:
    """The address of a record."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], ir.IntType(64))

    return types.int64(record), lower


def _entry_at(typing_context: Any, address: Any, position: Any) -> tuple[Signature, Any]:
    """The record ENTRY at an address, so many records on."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        size = ir.Constant(ir.IntType(64), ENTRY.itemsize)
        there = builder.add(arguments[0], builder.mul(arguments[1], size))
        return builder.inttoptr(there, context.get_value_type(_entry))

    return _entry(types.int64, types.int64), lower


def _number_at(typing_context: Any, address: Any, index: Any) -> tuple[Signature, Any]:
    """The float64 at an address, so many numbers on."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        there = builder.add(arguments[0], builder.mul(arguments[1], ir.Constant(ir.IntType(64), 8)))
        return builder.load(builder.inttoptr(there, ir.DoubleType().as_pointer()))

    return types.float64(types.int64, types.int64), lower


if config.DISABLE_JIT:

    def prefetch(record: Any) -> None:
        """Nothing to do in plain Python."""

    def row_of(window: Any, s: int) -> Any:
        """The row itself."""
        return window[s]

    def entry_at(row: Any, position: int) -> Any:
        """One item of it."""
        return row[position]

    def numbers_of(table: Any) -> Any:
        """Its numbers in a row."""
        return table.reshape(-1)

    def number_at(numbers: Any, index: int) -> float:
        """One of them."""
        return float(numbers[index])

else:
    _prefetch_intrinsic: Any = intrinsic(_prefetch)
    _address_intrinsic: Any = intrinsic(_address)
    _entry_at_intrinsic: Any = intrinsic(_entry_at)
    _number_at_intrinsic: Any = intrinsic(_number_at)

    @device
    def prefetch(record: Any) -> None:
        """Ask for the first cache line of ``record`` (an item of a structured array)."""
        _prefetch_intrinsic(record)

    @device
    def row_of(window: Any, s: int) -> Any:
        """What ``entry_at`` takes: valid as long as ``window`` is."""
        return _address_intrinsic(window[s, 0])

    @device
    def entry_at(row: Any, position: int) -> Any:
        """The remembered sample at a position of the ring."""
        return _entry_at_intrinsic(row, position)

    @device
    def numbers_of(table: Any) -> Any:
        """What ``number_at`` takes, of a C-contiguous float64 array: valid as long as that is."""
        return signed(table.ctypes.data)

    @device
    def number_at(numbers: Any, index: int) -> float:
        """One number of it, by its index in memory's order."""
        return float(_number_at_intrinsic(numbers, index))
