"""Names of the kernels that compute a graph's operators in ONNX Runtime."""

from __future__ import annotations

from typing import Literal

from longllava_trt.core.errors import InputError

__all__ = ["KERNELS", "KERNEL_ALIASES", "Kernels", "kernels_named"]

Kernels = Literal["fast", "onnx", "bodies"]
"""`fast`: this project's CPU kernels; `onnx`: ONNX Runtime alone. `bodies` is `onnx`'s old name."""

KERNELS: tuple[Kernels, ...] = ("fast", "onnx")
KERNEL_ALIASES: dict[str, Kernels] = {"bodies": "onnx"}


def kernels_named(name: object) -> Kernels:
    """Return the present name of a choice of kernels.

    Raises:
        InputError: If there is none of that name.
    """
    known: dict[str, Kernels] = {**KERNEL_ALIASES}
    known |= {kernels: kernels for kernels in KERNELS}
    if not isinstance(name, str) or name not in known:
        raise InputError(f"run: kernels must be one of {', '.join(KERNELS)}, got {name!r}")
    return known[name]
