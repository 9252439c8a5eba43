"""exp, softplus and SiLU of float32 numbers, as straight-line arithmetic that LLVM makes vector code of.

Calls into libm would stay scalar. Worst relative error against float64, in float32 ulp (2^-23): exp 0.8, softplus 2.3,
SiLU 1.9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["exp", "exp_nonpositive", "silu", "softplus"]

_f = np.float32
_ZERO, _HALF, _ONE, _TWO = _f(0.0), _f(0.5), _f(1.0), _f(2.0)
_MAX_EXPONENT = _f(87.3)
_LOG2_E = _f(1.4426950408889634)
# the high part has nine bits, so its product with an exponent is exact
_LN2_HIGH, _LN2_LOW = _f(0.693359375), _f(-2.1219444005469057e-4)
_E2, _E3, _E4, _E5, _E6 = (
    _f(0.5),
    _f(0.16666576998242918),
    _f(0.04166655462787958),
    _f(0.008363177629996275),
    _f(0.0013926181810625742),
)
_L1, _L3, _L5, _L7, _L9 = (
    _f(2.0),
    _f(0.6666632164138194),
    _f(0.40024595230612836),
    _f(0.2796515774560171),
    _f(0.28157778363602565),
)


@intrinsic
def _float_from_bits(_context: Any, _bits: Any) -> tuple[Any, Callable[..., Any]]:
    """Reinterpret an int32 as the float32 of the same bits."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


# no reassociation: it would merge the two halves of ln 2. no conditional expressions: they would
# keep loops scalar
_compile = numba.njit(fastmath={"contract"}, error_model="numpy", cache=True)


@_compile
def _exp(x: Any, k: Any) -> Any:
    """Return exp(x), given the integer nearest x / ln 2."""
    kf = _f(k)
    r = (x - kf * _LN2_HIGH) - kf * _LN2_LOW
    tail = (((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2
    bits = (k + np.int32(127)) << np.int32(23)
    # numba types an intrinsic as if its caller passed the compiler's context as well
    return (tail * r * r + r + _ONE) * _float_from_bits(bits)  # type: ignore[call-arg]


@_compile
def exp(x: Any) -> Any:
    """Exponentiate a float32; below -87.3 and above 87.3 the result stays as it is there."""
    x = min(max(x, -_MAX_EXPONENT), _MAX_EXPONENT)
    return _exp(x, np.int32(np.floor(x * _LOG2_E + _HALF)))


@_compile
def exp_nonpositive(x: Any) -> Any:
    """Return exp(x) for a float32 x <= 0; below -87.3 it stays at exp(-87.3), about 1e-38."""
    x = max(x, -_MAX_EXPONENT)
    return _exp(x, np.int32(x * _LOG2_E - _HALF))


@_compile
def softplus(x: Any) -> Any:
    """Return log(1 + exp(x)) for a float32 x, keeping relative accuracy for very negative x."""
    tail = exp_nonpositive(-abs(x))
    # log(1 + t) = 2 atanh(s), and s is at most a third
    s = tail / (_TWO + tail)
    s2 = s * s
    return max(x, _ZERO) + ((((_L9 * s2 + _L7) * s2 + _L5) * s2 + _L3) * s2 + _L1) * s


@_compile
def silu(x: Any) -> Any:
    """Return x / (1 + exp(-x)) for a float32 x."""
    tail = exp_nonpositive(-abs(x))
    return (max(x, _ZERO) + min(x, _ZERO) * tail) / (_ONE + tail)
