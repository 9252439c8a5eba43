"""exp, softplus and SiLU of float32 numbers: one number or a vector, without a branch.

Functions whose first argument is a builder write LLVM's instructions, for other kernels' vectors; `exp` and `silu` are
the same on one number, of which LLVM makes vectors in loops; `multiply_silu` and `copy` take rows. Calls into libm would stay
scalar. Worst relative error against float64, in float32 ulp (2^-23): exp 0.9, 2^x 1.4, softplus 2.3, SiLU 2; 2^x 1.6 where
the machine cannot fuse a multiplication and an addition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from longllava_trt.plugins_trt.cpu.vector_ir import (
    FLOAT,
    I32,
    by_vectors,
    call,
    fused,
    load,
    of_words,
    store,
    suffix,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "LOG2_E",
    "constant",
    "copy",
    "exp",
    "exp_of",
    "multiply_silu",
    "on_numbers",
    "power_of_two",
    "silu",
    "silu_of",
    "softplus_of",
]

LOG2_E = 1.4426950408889634
_MAX_EXPONENT = 87.3
_LEAST_POWER = -126.0
# the high part has nine bits, so its product with an exponent is exact
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.1219444005469057e-4
# added to a float32 of less than 2^22, it leaves no place for a fraction
_LARGE = 1.5 * 2**23

# the constant term of the first two is 1, of the third 0
_EXP = (
    0.0013926181810625742,
    0.008363177629996275,
    0.04166655462787958,
    0.16666576998242918,
    0.5,
    1.0,
    1.0,
)
_POWER_OF_TWO = (
    0.001326472731307149,
    0.009671512991189957,
    0.05550733581185341,
    0.24022242426872253,
    0.6931470036506653,
    1.0,
)
_LOG1P = (
    0.28157778363602565,
    0.2796515774560171,
    0.40024595230612836,
    0.6666632164138194,
    2.0,
)


def constant(like: Any, value: float) -> Any:
    """Return a number, in every lane of a vector."""
    if isinstance(like.type, ir.VectorType):
        return ir.Constant(like.type, [value] * like.type.count)
    return ir.Constant(like.type, value)


def _larger(builder: Any, x: Any, least: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, least), x, least)


def _smaller(builder: Any, x: Any, most: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", x, most), x, most)


def _magnitude(builder: Any, x: Any) -> Any:
    return call(builder, f"llvm.fabs.{suffix(x.type)}", x.type, [x])


def _polynomial(builder: Any, x: Any, coefficients: Sequence[float]) -> Any:
    """Return the polynomial whose coefficients, highest power first, are given."""
    total = constant(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = fused(builder, total, x, constant(x, coefficient))
    return total


def _scaled(builder: Any, x: Any, shifted: Any) -> Any:
    """Return x times two to the power of the whole number in the last bits of `shifted`."""
    bits = ir.VectorType(I32, x.type.count) if isinstance(x.type, ir.VectorType) else I32
    places = ir.Constant(bits, [23] * x.type.count) if bits is not I32 else I32(23)
    whole = builder.shl(builder.bitcast(shifted, bits), places)
    return builder.bitcast(builder.add(builder.bitcast(x, bits), whole), x.type)


def power_of_two(builder: Any, x: Any) -> Any:
    """Write 2^x for x <= 0; below -126 it stays as it is there."""
    x = _larger(builder, x, constant(x, _LEAST_POWER))
    shifted = builder.fadd(x, constant(x, _LARGE))
    rest = builder.fsub(x, builder.fsub(shifted, constant(x, _LARGE)))
    return _scaled(builder, _polynomial(builder, rest, _POWER_OF_TWO), shifted)


def exp_of(builder: Any, x: Any) -> Any:
    """Write exp(x); below -87.3 and above 87.3 it stays as it is there."""
    x = _larger(
        builder, _smaller(builder, x, constant(x, _MAX_EXPONENT)), constant(x, -_MAX_EXPONENT)
    )
    shifted = fused(builder, x, constant(x, LOG2_E), constant(x, _LARGE))
    whole = builder.fsub(shifted, constant(x, _LARGE))
    rest = fused(builder, whole, constant(x, -_LN2_HIGH), x)
    rest = fused(builder, whole, constant(x, -_LN2_LOW), rest)
    return _scaled(builder, _polynomial(builder, rest, _EXP), shifted)


def softplus_of(builder: Any, x: Any) -> Any:
    """Write log(1 + exp(x)), which keeps its relative accuracy for very negative x."""
    tail = exp_of(builder, builder.fneg(_magnitude(builder, x)))
    # log(1 + t) = 2 atanh(s), and s is at most a third
    s = builder.fdiv(tail, builder.fadd(constant(x, 2.0), tail))
    log = _polynomial(builder, builder.fmul(s, s), _LOG1P)
    return fused(builder, log, s, _larger(builder, x, constant(x, 0.0)))


def silu_of(builder: Any, x: Any) -> Any:
    """Write x / (1 + exp(-x))."""
    zero = constant(x, 0.0)
    tail = exp_of(builder, builder.fneg(_magnitude(builder, x)))
    shares = fused(builder, _smaller(builder, x, zero), tail, _larger(builder, x, zero))
    return builder.fdiv(shares, builder.fadd(constant(x, 1.0), tail))


def on_numbers(name: str, write: Callable[[Any, Any], Any]) -> Any:
    """Return what a writer writes as a function of one float32, for compiled functions without `fastmath`."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return write(builder, args[0])

    def typing(_context: Any, _x: Any) -> tuple[Any, Callable[..., Any]]:
        return types.float32(types.float32), codegen

    typing.__name__ = typing.__qualname__ = name
    return intrinsic(typing)


_exp, _silu = on_numbers("exp", exp_of), on_numbers("silu", silu_of)


# functions of their own, because `fastmath` of a caller would reach what is written into it, and reassociate the
# large number away
@numba.njit("float32(float32)", error_model="numpy", cache=True)
def exp(x: Any) -> Any:
    """Exponentiate a float32; below -87.3 and above 87.3 the result stays as it is there."""
    return _exp(x)


@numba.njit("float32(float32)", error_model="numpy", cache=True)
def silu(x: Any) -> Any:
    """Return x / (1 + exp(-x)) for a float32 x."""
    return _silu(x)


def _copy(builder: Any, source: Any, target: Any, count: Any) -> None:
    number = FLOAT.as_pointer()
    places = (builder.inttoptr(word, number) for word in (target, source))
    cgutils.raw_memcpy(builder, *places, count, 4)  # type: ignore[no-untyped-call, call-arg]


copy = of_words("copy", 3, _copy)
"""Copy numbers. Words: from where, to where, how many. A slice assignment guards against overlaps and takes seconds to compile."""


def _multiply_silu(builder: Any, z: Any, x: Any, y: Any, count: Any) -> None:
    def write(offset: Any, mask: Any) -> None:
        gates, values = (load(builder, builder.add(row, offset), FLOAT, mask) for row in (z, x))
        gated = builder.fmul(silu_of(builder, gates), values)
        store(builder, gated, builder.add(y, offset), mask)

    by_vectors(builder, count, write)


multiply_silu = of_words("multiply_silu", 4, _multiply_silu)
"""Write silu(z) * x, which may take the place of either. Words: where z, x and y are; their length."""
