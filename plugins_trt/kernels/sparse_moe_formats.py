"""Weight-only formats of the experts' matrices: int8 per output channel, int4 per group of 128.

Both are symmetric and keep axis -1 innermost, along which an expert's product is summed:

- int8: code = round(w / scale) in [-127, 127]; scale = max |w| / 127 of a row.
- int4: code = round(w / scale) + 8 in [1, 15]; scale = max |w| / 7 of up to 128 columns of a row.
  Two codes in a byte, the even column in the low nibble: the order and the zero point of ONNX
  Runtime's `MatMulNBits`. The kernels need columns in multiples of 32.

w = code * scale, or (code - 8) * scale; no weight moves by more than half its scale. Numpy only;
one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from longllava_trt.core.errors import ContractError
from longllava_trt.core.weight_formats import GROUP, WEIGHT_FORMATS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CODECS",
    "GROUP",
    "Codec",
    "dequantise_int4",
    "dequantise_int8",
    "pack_int4",
    "quantise_int4",
    "quantise_int8",
    "unpack_int4",
]

_INT8, _INT4 = WEIGHT_FORMATS["w8a16"], WEIGHT_FORMATS["w4a16"]


def quantise_int8(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise every row by itself.

    Args:
        weights: Finite. [..., rows, columns], float32.

    Returns:
        codes: [..., rows, columns], int8.
        scales: 1 for a row of zeros. [..., rows], float32.
    """
    scales = _scales(np.abs(weights).max(axis=-1), _INT8.top_code)
    return np.rint(weights / scales[..., None]).astype(np.int8), scales


def dequantise_int8(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weights that `quantise_int8` stored.

    Args:
        codes: [..., rows, columns], int8.
        scales: [..., rows], float32.

    Returns:
        [..., rows, columns], float32.
    """
    return codes.astype(np.float32) * scales[..., None]


def quantise_int4(weights: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantise every group of 128 columns of every row by itself.

    Args:
        weights: Finite. [..., rows, columns], float32; ``columns`` is even.

    Returns:
        packed: [..., rows, columns / 2], uint8.
        scales: 1 for a group of zeros. [..., rows, ceil(columns / 128)], float32.

    Raises:
        ContractError: If ``columns`` is odd.
    """
    columns = weights.shape[-1]
    starts = range(0, columns, GROUP)
    largest = [np.abs(weights[..., i : i + GROUP]).max(axis=-1) for i in starts]
    scales = _scales(np.stack(largest, axis=-1), _INT4.top_code)
    codes = np.rint(weights / _per_column(scales, columns)) + 8
    return pack_int4(codes.astype(np.uint8)), scales


def dequantise_int4(packed: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weights that `quantise_int4` stored.

    Args:
        packed: [..., rows, columns / 2], uint8.
        scales: [..., rows, ceil(columns / 128)], float32.

    Returns:
        [..., rows, columns], float32.
    """
    codes = unpack_int4(packed).astype(np.float32)
    return (codes - 8) * _per_column(scales, codes.shape[-1])


def pack_int4(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put two codes of 0 to 15 in a byte, the even column's in the low nibble.

    Args:
        codes: [..., columns], uint8; ``columns`` is even.

    Returns:
        [..., columns / 2], uint8.

    Raises:
        ContractError: If ``columns`` is odd.
    """
    if codes.shape[-1] % 2:
        raise ContractError(
            f"pack_int4: expected an even number of columns, got {codes.shape[-1]}; quantise this "
            "tensor to int8"
        )
    packed: NDArray[np.uint8] = codes[..., ::2] | (codes[..., 1::2] << np.uint8(4))
    return packed


def unpack_int4(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo `pack_int4`: from [..., columns / 2], uint8, to [..., columns], uint8."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def _scales(largest: NDArray[np.float32], top_code: int) -> NDArray[np.float32]:
    scales = (largest / np.float32(top_code)).astype(np.float32)
    # zero, and values that division has rounded to zero
    return np.where(scales > 0, scales, np.float32(1))


def _per_column(scales: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    return np.repeat(scales, GROUP, axis=-1)[..., :columns]


class Codec(NamedTuple):
    """Functions that make codes of one format and read them."""

    quantise: Callable[[NDArray[np.float32]], tuple[NDArray[Any], NDArray[np.float32]]]
    dequantise: Callable[[NDArray[Any], NDArray[np.float32]], NDArray[np.float32]]


CODECS: Mapping[str, Codec] = {
    _INT8.codec: Codec(quantise_int8, dequantise_int8),
    _INT4.codec: Codec(quantise_int4, dequantise_int4),
}
"""Codecs by `WeightFormat.codec`."""
