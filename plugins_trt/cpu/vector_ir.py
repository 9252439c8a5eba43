"""LLVM's vectors for kernels that Numba would not vectorise well: what intrinsics are written with.

Addresses are int64; elements are float32, or 16 bits that are bfloat16 or half.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ELEMENTS",
    "FLOAT",
    "HAS_AVX512",
    "I32",
    "I64",
    "LANES",
    "at",
    "by_vectors",
    "call",
    "fused",
    "lanes_below",
    "load",
    "multiply_add",
    "of_words",
    "prefetch",
    "shuffle",
    "size_of",
    "slot",
    "splat",
    "store",
    "suffix",
    "transposed",
    "widened",
]

# as Numba does: its own setting, or what the machine has
_FEATURES = (getattr(config, "CPU_FEATURES", None) or llvm.get_host_cpu_features().flatten()).split(
    ","
)
HAS_AVX512 = "+avx512f" in _FEATURES
LANES = 16 if HAS_AVX512 else 8 if "+avx" in _FEATURES else 4
"""float32 numbers in a register of this machine."""

I32, I64 = ir.IntType(32), ir.IntType(64)
FLOAT = ir.FloatType()
ELEMENTS = {types.float32: FLOAT, types.uint16: ir.IntType(16), types.int16: ir.HalfType()}
"""Element types of arrays of these dtypes: float32, bfloat16, half."""


def of_words(name: str, count: int, write: Callable[..., None]) -> Any:
    """Return a function of N int64 words for compiled code; ``write`` takes a builder and the words."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        write(builder, *args)
        return context.get_dummy_value()

    def typing(_context: Any, *_words: Any) -> tuple[Any, Callable[..., Any]]:
        return types.void(*[types.int64] * count), codegen

    typing.__name__ = typing.__qualname__ = name
    # Numba reads how many arguments there are
    words = ["context", *(f"word_{k}" for k in range(count))]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    typing.__signature__ = inspect.Signature([inspect.Parameter(w, kind) for w in words])  # type: ignore[attr-defined]
    return intrinsic(typing)


def size_of(element: Any) -> int:
    """Return the bytes of an element."""
    return 4 if element == FLOAT else 2


def call(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    """Call a function of LLVM's own."""
    signature = ir.FunctionType(result, [arg.type for arg in args])
    function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, signature, name
    )
    return builder.call(function, args)


def slot(builder: Any, initial: Any) -> Any:
    """Return a place for a value that changes; LLVM makes a register of it."""
    return cgutils.alloca_once_value(builder, initial)  # type: ignore[no-untyped-call]


def at(builder: Any, address: Any, step: Any, number: Any) -> Any:
    """Return an address N steps further."""
    return builder.add(address, builder.mul(number, step))


def by_vectors(builder: Any, count: Any, write: Callable[[Any, Any], None]) -> None:
    """Write what is done with each vector of a row, given its offset in bytes and its mask, if it needs one."""
    whole = builder.and_(count, I64(-LANES))
    with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES)) as (i, _):
        write(builder.mul(i, I64(4)), None)
    with builder.if_then(builder.icmp_signed("<", whole, count)):
        rest = lanes_below(builder, builder.sub(count, whole))
        write(builder.mul(whole, I64(4)), rest)


def prefetch(builder: Any, address: Any) -> None:
    """Ask for a line in the second-level cache; an address that cannot be read does no harm."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, I32(0), I32(2), I32(1)])


def shuffle(builder: Any, a: Any, b: Any, picks: list[int]) -> Any:
    """Return lanes of two vectors, those of the second counted on from the first's."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(picks)), picks))


def splat(builder: Any, value: Any, lanes: int = LANES) -> Any:
    """Return a number in every lane."""
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return shuffle(builder, first, first, [0] * lanes)


def lanes_below(builder: Any, count: Any, lanes: int = LANES, *, first: int = 0) -> Any:
    """Return the mask of the lanes whose number, counted on from `first`, is below count."""
    numbers = ir.Constant(ir.VectorType(I64, lanes), list(range(first, first + lanes)))
    return builder.icmp_signed("<", numbers, splat(builder, count, lanes))


def load(builder: Any, address: Any, element: Any, mask: Any, lanes: int = LANES) -> Any:
    """Load a vector as it is stored; where the mask, if any, is off, nothing is read and the lane is zero."""
    vector = ir.VectorType(element, lanes)
    pointer = builder.inttoptr(address, vector.as_pointer())
    if mask is None:
        return builder.load(pointer, align=size_of(element))
    name = f"llvm.masked.load.{suffix(vector)}.p0"
    return call(builder, name, vector, [pointer, I32(size_of(element)), mask, vector(None)])


def store(builder: Any, value: Any, address: Any, mask: Any) -> None:
    """Store float32 numbers where the mask, if any, is on."""
    pointer = builder.inttoptr(address, value.type.as_pointer())
    if mask is None:
        builder.store(value, pointer, align=4)
        return
    name = f"llvm.masked.store.{suffix(value.type)}.p0"
    call(builder, name, ir.VoidType(), [value, pointer, I32(4), mask])


def transposed(builder: Any, square: list[Any]) -> list[Any]:
    """Return as many vectors as they have lanes, rows made columns."""
    lanes, rows = len(square), list(square)
    distance = 1
    while distance < lanes:
        # swap the off-diagonal blocks of every two rows that are so far apart
        low = [c if not c & distance else lanes + c - distance for c in range(lanes)]
        high = [c + distance if not c & distance else lanes + c for c in range(lanes)]
        for row in range(lanes):
            if not row & distance:
                pair = rows[row], rows[row + distance]
                rows[row] = shuffle(builder, *pair, low)
                rows[row + distance] = shuffle(builder, *pair, high)
        distance *= 2
    return rows


def widened(builder: Any, value: Any) -> Any:
    """Return a vector of float32, bfloat16 bits or half as float32; every value is kept exactly."""
    lanes = value.type.count
    floats = ir.VectorType(FLOAT, lanes)
    if value.type == floats:
        return value
    if value.type.element == ir.HalfType():
        return builder.fpext(value, floats)
    wide = ir.VectorType(I32, lanes)
    bits = builder.shl(builder.zext(value, wide), ir.Constant(wide, [16] * lanes))
    return builder.bitcast(bits, floats)


def fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of numbers or vectors, rounded once where the machine can."""
    return call(builder, f"llvm.fmuladd.{suffix(a.type)}", a.type, [a, b, c])


def multiply_add(builder: Any, a: Any, b: Any, total: Any) -> None:
    """Add a product to a slot."""
    builder.store(fused(builder, a, b, builder.load(total)), total)


def suffix(kind: Any) -> str:
    """Return what LLVM calls a type, number or vector, in the names of its functions."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{kind.element.intrinsic_name}"
    return str(kind.intrinsic_name)
