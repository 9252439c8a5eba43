"""Jamba's names of tensors: those of the published files, which have each expert by itself.

transformers 5 stacks the experts of a layer in two tensors; here they become the published names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from longllava_trt.models.family import Renaming, StoredTensor, rename, stacked_names
from longllava_trt.models.parameters import expert_path, experts_path, parameter_shapes
from longllava_trt.models.spec import ModelSpec

__all__ = ["canonical_name", "is_tolerated", "stacked_tensors", "stored_parts", "tensor_name"]

_PARAMETERS: Renaming = (
    (re.compile(r"^(embed_tokens|layers)\."), r"model.\1."),
    (re.compile(r"^final_norm\."), "model.final_layernorm."),
    (re.compile(r"\.mixer_norm\."), ".input_layernorm."),
    (re.compile(r"\.feed_forward_norm\."), ".pre_ff_layernorm."),
    (re.compile(r"\.attention\."), ".self_attn."),
    (re.compile(r"\.mamba\.dt_norm\."), ".mamba.dt_layernorm."),
    (re.compile(r"\.mamba\.B_norm\."), ".mamba.b_layernorm."),
    (re.compile(r"\.mamba\.C_norm\."), ".mamba.c_layernorm."),
    (re.compile(r"(\.feed_forward\.(?:experts\.\d+\.)?)(gate|up|down)\."), r"\1\2_proj."),
)
"""Patterns from paths to the published names."""

_STACKED = re.compile(r"(.*\.feed_forward\.experts\.)(gate_up|down)_proj")
_STACKS = (("gate_up", ("gate", "up")), ("down", ("down",)))


def tensor_name(path: str) -> str:
    """Return the published name of a parameter by its path, or of a prefix of paths."""
    return rename(path, _PARAMETERS)


def canonical_name(key: str) -> str:
    """Return the published name, which all files use for what is not stacked."""
    return key


def stored_parts(key: str, num_experts: int) -> tuple[str, ...]:
    """Return the names of the tensors in one stored tensor, in storage order.

    Stacked `gate_up_proj` [experts, 2 * intermediate, hidden] has each expert's gate rows before
    its up rows.

    Args:
        key: Key in the file.
        num_experts: Length of the stored tensor's first axis.
    """
    stacked = _STACKED.fullmatch(key)
    if not stacked:
        return (canonical_name(key),)
    return stacked_names(stacked[1], stacked[2], num_experts)


def stacked_tensors(spec: ModelSpec) -> dict[str, StoredTensor]:
    """Return the tensors of a file whose experts are stacked, by key."""
    stored: dict[str, StoredTensor] = {}
    stacks = {experts_path(layer): dict(_stacks(spec, layer)) for layer in spec.decoder.moe_layers}
    for path, shape in parameter_shapes(spec).items():
        prefix = path[: path.find("experts.") + len("experts.")]
        # a stack stands where its first expert would
        stored |= stacks.get(prefix) or {tensor_name(path): StoredTensor((path,), shape)}
    return stored


def _stacks(spec: ModelSpec, layer: int) -> Iterator[tuple[str, StoredTensor]]:
    experts, hidden = spec.decoder.moe_layers[layer], spec.decoder.hidden_size
    for name, kinds in _STACKS:
        paths = tuple(
            expert_path(layer, expert, kind)
            for expert in range(experts.num_experts)
            for kind in kinds
        )
        inner = experts.intermediate_size
        sides = (hidden, inner) if name == "down" else (2 * inner, hidden)
        key = tensor_name(experts_path(layer)) + f"{name}_proj"
        yield key, StoredTensor(paths, (experts.num_experts, *sides))


def is_tolerated(_key: str) -> bool:
    """Return False: the published files hold nothing but parameters."""
    return False
