"""mamba-ssm's selective scan in the place of ours, where that package is installed.

It begins with a state of zeros and takes no other, so it serves the first chunk of a sequence. What a carried state adds to a
later chunk would cost a whole scan of ours beside it: there ours runs alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from longllava_trt.core.errors import InputError, MissingDependencyError
from longllava_trt.runtime.backends.kernels.decoder_model import Scan

if TYPE_CHECKING:
    import torch

__all__ = ["load_mamba_scan", "mamba_scan"]

_MODULE = "mamba_ssm.ops.selective_scan_interface"


def load_mamba_scan(device: torch.device) -> Scan:
    """Return mamba-ssm's scan with the arguments of ours.

    Args:
        device: Where it is to run.

    Raises:
        InputError: If that is no GPU.
        MissingDependencyError: If the package is not installed, or cannot be loaded.
    """
    if device.type != "cuda":
        raise InputError(
            f"scan: mamba-ssm runs on an NVIDIA GPU only, got {device.type} (TRITON_INTERPRET=1 is set); "
            "use --scan ours"
        )
    if importlib.util.find_spec("mamba_ssm") is None:
        raise MissingDependencyError(
            "scan: mamba-ssm is not installed; pip install 'longllava-trt[mamba]', or use --scan ours"
        )
    try:
        module = importlib.import_module(_MODULE)
    except (ImportError, OSError) as err:
        raise MissingDependencyError(
            f"scan: mamba-ssm is installed but cannot be loaded ({err}); reinstall it for this PyTorch: "
            "pip install --force-reinstall --no-build-isolation 'mamba-ssm>=2.3', or use --scan ours"
        ) from err
    return partial(mamba_scan, module.selective_scan_fn)


def mamba_scan(  # noqa: PLR0913, PLR0917 - the operator's inputs, as our own scan takes them
    scan: Callable[..., Any],
    u: torch.Tensor,
    dt: torch.Tensor,
    A_log: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    *,
    state_out: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a scan that has mamba-ssm's arguments on ours.

    Args:
        scan: `selective_scan_fn`, or `selective_scan_ref`.
        u: [batch, seq_len, d_inner], T.
        dt: [batch, seq_len, d_inner], T.
        A_log: [d_inner, d_state], T.
        B: [batch, seq_len, d_state], T.
        C: [batch, seq_len, d_state], T.
        D: [d_inner], T.
        z: [batch, seq_len, d_inner], T.
        dt_bias: [d_inner], T.
        state: Must be zeros, and is not read. [batch, d_inner, d_state], float32.
        state_out: Where to put the state after the last position. [batch, d_inner, d_state], float32.

    Returns:
        y: [batch, seq_len, d_inner], T.
        state_out: As given.
    """
    del state
    y, last = scan(
        u.mT,
        dt.mT,
        -A_log.float().exp(),
        B.mT,
        C.mT,
        D.float(),
        z.mT,
        dt_bias.float(),
        delta_softplus=True,
        return_last_state=True,
    )
    return y.mT.contiguous(), state_out.copy_(last)
