"""The operators once more, in float64: what every implementation is compared with.

Written from `longllava_trt.plugins_trt.spec` alone, not from the kernels or their plain versions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "attention_oracle",
    "conv_oracle",
    "mamba_oracle",
    "moe_oracle",
    "relative_rms",
    "scan_oracle",
    "widened",
]


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return RMS of the error over RMS of the expectation; infinite if a number is not finite."""
    error = (actual.double() - expected).square().sum().sqrt() / expected.square().sum().sqrt()
    value = float(error)
    return value if math.isfinite(value) else math.inf


def scan_oracle(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Step through time. Returns y and the last state."""
    import torch

    t = {name: tensor.double() for name, tensor in tensors.items()}
    delta = torch.nn.functional.softplus(t["dt"] + t["dt_bias"], threshold=50)
    A, h = -t["A_log"].exp(), t["state"].clone()
    y = torch.empty_like(t["u"])
    for i in range(y.shape[1]):
        h *= torch.exp(delta[:, i, :, None] * A)
        h += (delta[:, i] * t["u"][:, i])[..., None] * t["B"][:, i, None]
        y[:, i] = torch.einsum("bdn,bn->bd", h, t["C"][:, i])
    return (y + t["D"] * t["u"]) * torch.nn.functional.silu(t["z"]), h


def mamba_oracle(tensors: dict[str, Tensor], *, eps: float) -> tuple[Tensor, Tensor]:
    """Normalise and project, nothing rounded, then scan. Returns y and the last state."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    weights = [t[f"{name}_norm_weight"] for name in ("dt", "b", "c")]
    parts = t["projected"].split([len(weight) for weight in weights], dim=-1)
    dt, B, C = (
        weight * part / (part.square().mean(-1, keepdim=True) + eps).sqrt()
        for part, weight in zip(parts, weights, strict=True)
    )
    taken = {name: t[name] for name in ("u", "A_log", "D", "dt_bias", "state")}
    taken |= {"dt": dt @ t["dt_proj_weight"].mT, "B": B, "C": C}
    return scan_oracle(taken | {"z": t["xz"].chunk(2, dim=-1)[1]})


def conv_oracle(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Convolve with PyTorch's own convolution. Returns the output and the present state."""
    import torch

    t = {name: tensor.double() for name, tensor in tensors.items()}
    extended = torch.cat([t["past_state"], t["input"]], dim=2)
    total = torch.nn.functional.conv1d(
        extended, t["weight"], t["bias"], groups=t["weight"].shape[0]
    )
    return torch.nn.functional.silu(total), extended[:, :, t["input"].shape[2] :]


def attention_oracle(tensors: dict[str, Tensor]) -> Tensor:
    """Attend to caches that hold the new tokens already, one head after another."""
    import torch

    q, seq_len = tensors["q"].double(), tensors["q"].shape[1]
    group = q.shape[2] // tensors["key_cache"].shape[1]
    y = torch.empty_like(q)
    for row, past in enumerate(tensors["past_len"].tolist()):
        positions = torch.arange(past + seq_len, device=q.device)
        hidden = positions > positions[past:, None]
        for head in range(q.shape[2]):
            keys, values = (
                tensors[name][row, head // group, : past + seq_len].double()
                for name in ("key_cache", "value_cache")
            )
            scores = q[row, :, head] @ keys.T * q.shape[3] ** -0.5
            y[row, :, head] = scores.masked_fill(hidden, -math.inf).softmax(-1) @ values
    return y


def moe_oracle(tensors: dict[str, Tensor], *, top_k: int) -> Tensor:
    """Visit expert after expert, each widened when its turn comes."""
    import torch

    x, weights = tensors["x"].double(), tensors["router_logits"].double().softmax(-1)
    chosen = torch.zeros_like(weights, dtype=torch.bool)
    chosen.scatter_(1, weights.topk(top_k, dim=-1).indices, value=True)
    y = torch.zeros_like(x)
    for expert in range(weights.shape[1]):
        tokens = chosen[:, expert].nonzero().flatten()
        if not len(tokens):
            continue
        gate_up, down = (
            widened(tensors[name][expert], _of(tensors.get(f"{name}_scales"), expert))
            for name in ("gate_up", "down")
        )
        gate, up = (x[tokens] @ gate_up.T).chunk(2, dim=-1)
        out = (torch.nn.functional.silu(gate) * up) @ down.T
        y[tokens] += weights[tokens, expert, None] * out
    return y


def widened(weights: Tensor, scales: Tensor | None) -> Tensor:
    """Return one expert's matrix in float64. [rows, columns]."""
    import torch

    if scales is None:
        return weights.double()
    if scales.ndim == 1:
        return weights.double() * scales.double()[:, None]
    codes = torch.stack([weights & 15, weights >> 4], dim=-1).flatten(-2).double() - 8
    columns = torch.arange(codes.shape[1], device=codes.device) // 128
    return codes * scales.double()[:, columns]


def _of(scales: Tensor | None, expert: int) -> Tensor | None:
    return None if scales is None else scales[expert]
