"""SelectiveScan on the CPU: arrays in, arrays out, checked at the door.

Knows nothing of ONNX; `register.py` makes it an operator. The loops are in `scan_kernel.py`, the
mathematics is at `plugins_trt.spec.SELECTIVE_SCAN`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longllava_trt.errors import ContractError
from plugins_trt.cpu.scan_kernel import scan, scan_parallel
from plugins_trt.spec import SELECTIVE_SCAN

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["selective_scan", "selective_scan_into"]

# state updates; below, waking threads costs more than it saves, far more where cores are taken
_PARALLEL_FROM = 500_000


def selective_scan(
    u: NDArray[np.float32],
    dt: NDArray[np.float32],
    A_log: NDArray[np.float32],
    B: NDArray[np.float32],
    C: NDArray[np.float32],
    D: NDArray[np.float32],
    z: NDArray[np.float32],
    dt_bias: NDArray[np.float32],
    state: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run the recurrence over a whole sequence, from a carried state.

    Args:
        u: Input after the convolution and SiLU. [batch, seq_len, d_inner], float32.
        dt: Step size before bias and softplus. [batch, seq_len, d_inner], float32.
        A_log: Logarithm of the decay rates. [d_inner, d_state], float32.
        B: Input projection, one for all channels. [batch, seq_len, d_state], float32.
        C: Output projection, one for all channels. [batch, seq_len, d_state], float32.
        D: Skip weight. [d_inner], float32.
        z: Gate before SiLU. [batch, seq_len, d_inner], float32.
        dt_bias: Added to dt. [d_inner], float32.
        state: State before the first token; never written. [batch, d_inner, d_state], float32.

    Returns:
        y: Gated output, newly allocated. [batch, seq_len, d_inner], float32.
        state_out: State after the last token, newly allocated. [batch, d_inner, d_state], float32.

    Raises:
        ContractError: If shapes or dtypes disagree; lists all inputs that do.

    Note:
        The kernel holds the GIL, which keeps concurrent callers out of Numba's thread pool.
    """
    inputs = (u, dt, A_log, B, C, D, z, dt_bias, state)
    y, state_out = np.empty_like(u, order="C"), np.empty_like(state, order="C")
    selective_scan_into(*map(np.ascontiguousarray, inputs), y, state_out)
    return y, state_out


def selective_scan_into(*arrays: NDArray[np.float32]) -> None:
    """Run `selective_scan` on contiguous inputs, filling outputs that the caller provides.

    Args:
        arrays: The nine inputs of `selective_scan`, then ``y`` and ``state_out``, shaped like ``u`` and ``state``.

    Raises:
        ContractError: If shapes or dtypes disagree; lists all inputs that do.
    """
    inputs = arrays[:-2]
    _check(inputs)
    u, state = inputs[0], inputs[-1]
    kernel = scan_parallel if u.size * state.shape[2] >= _PARALLEL_FROM else scan
    kernel(*arrays)


def _check(arrays: tuple[NDArray[np.float32], ...]) -> None:
    dims: dict[str | int, int] = {}
    problems = []
    for value, array in zip(SELECTIVE_SCAN.inputs, arrays, strict=True):
        fits = array.ndim == len(value.axes) and array.dtype == np.float32
        if fits:
            for axis, size in zip(value.axes, array.shape, strict=True):
                fits &= dims.setdefault(axis, size) == size
        if not fits:
            want = ", ".join(
                f"{axis}={dims[axis]}" if axis in dims else f"{axis}" for axis in value.axes
            )
            problems.append(
                f"'{value.name}' must be [{want}] float32, got {list(array.shape)} {array.dtype}"
            )
    if problems:
        raise ContractError("selective_scan: " + "; ".join(problems))
