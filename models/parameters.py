"""Every parameter of a model: its path and shape.

A path is the parameter's place in the reference model, the same in every family, such as
`layers.3.mamba.in_proj.weight`. A family has the checkpoint's name for it. Only this module and the
reference contain paths.
"""

from __future__ import annotations

from collections.abc import Iterator

from longllava_trt.models.spec import (
    AttentionSpec,
    ConnectorSpec,
    DecoderSpec,
    ExpertsSpec,
    LayerSpec,
    MambaSpec,
    ModelSpec,
    VisionSpec,
)

__all__ = [
    "EMBEDDING",
    "EXPERT_MATRICES",
    "HEAD",
    "IMAGE_NEWLINE",
    "PACKED_PARTS",
    "PROJECTOR",
    "VISION",
    "VISION_QUERIES",
    "Shape",
    "attention_path",
    "decoder_parameters",
    "expert_path",
    "experts_path",
    "mamba_path",
    "packed_experts_path",
    "parameter_shapes",
    "path_ending",
    "router_path",
    "unused_parameters",
]

Shape = tuple[int, ...]
Shapes = Iterator[tuple[str, Shape]]

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
IMAGE_NEWLINE = "image_newline"
"""Embedding that ends each row of an image's map of tiles. [hidden_size]."""
VISION, PROJECTOR = "vision.", "projector."
"""Prefixes of the paths of the tower and of the connector."""
PACKED_PARTS = ("gate_up", "down", "gate_up_scales", "down_scales")
"""Tensors that all experts of a layer are stacked into when they are quantised."""
EXPERT_MATRICES = ("gate", "up", "down")
"""The three matrices of a SwiGLU, in a checkpoint's order."""


VISION_QUERIES = ".self_attn.q_proj.weight"
"""End of the path of a tower's queries; each of its layers has one."""


def path_ending(path: str) -> str:
    """Return the part of a layer-0 parameter's path after the layer, the same in all layers."""
    return path.removeprefix("layers.0")


def attention_path(layer: int, parameter: str) -> str:
    """Return the path of an attention layer's parameter, such as `q_proj.weight`."""
    return f"layers.{layer}.attention.{parameter}"


def mamba_path(layer: int, parameter: str) -> str:
    """Return the path of a Mamba layer's parameter, such as `A_log`."""
    return f"layers.{layer}.mamba.{parameter}"


def router_path(layer: int) -> str:
    """Return the path of a routed layer's router."""
    return f"layers.{layer}.feed_forward.router.weight"


def experts_path(layer: int) -> str:
    """Return the prefix of the paths of a routed layer's experts."""
    return f"layers.{layer}.feed_forward.experts."


def expert_path(layer: int, expert: int, matrix: str) -> str:
    """Return the path of one matrix of one expert: `gate`, `up` or `down`."""
    return f"{experts_path(layer)}{expert}.{matrix}.weight"


def packed_experts_path(layer: int, part: str) -> str:
    """Return the path of a layer's stacked experts, such as `gate_up` or `down_scales`."""
    return f"{experts_path(layer)}{part}"


def parameter_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Return the shape of every parameter by path, in a checkpoint's order."""
    shapes = decoder_parameters(spec.decoder)
    if spec.vision is not None and spec.connector is not None:
        hidden = spec.decoder.hidden_size
        shapes.update(_connector(spec.connector, spec.vision.feature_size, hidden))
        if spec.images.has_newline:
            shapes[IMAGE_NEWLINE] = (hidden,)
        shapes.update((VISION + name, shape) for name, shape in _vision_tower(spec.vision))
    return shapes


def unused_parameters(spec: ModelSpec) -> frozenset[str]:
    """Return paths that no stage reads, and that a file may lack: the tower's after its feature."""
    if spec.vision is None:
        return frozenset()
    run = spec.vision.num_run_layers
    after = [f"{VISION}encoder.layers.{i}." for i in range(run, spec.vision.num_layers)]
    prefixes = (*after, f"{VISION}post_layernorm.")
    return frozenset(path for path in parameter_shapes(spec) if path.startswith(prefixes))


def decoder_parameters(decoder: DecoderSpec) -> dict[str, Shape]:
    """Return the shape of every parameter of the decoder by path, embeddings and head included."""
    hidden = decoder.hidden_size
    shapes: dict[str, Shape] = {EMBEDDING: (decoder.vocab_size, hidden)}
    for i, layer in enumerate(decoder.layers):
        shapes.update((f"layers.{i}.{name}", shape) for name, shape in _layer(layer, hidden))
    shapes["final_norm.weight"] = (hidden,)
    if not decoder.tie_embeddings:
        shapes[HEAD] = (decoder.vocab_size, hidden)
    return shapes


def _layer(layer: LayerSpec, hidden: int) -> Shapes:
    yield "mixer_norm.weight", (hidden,)
    mixer = layer.mixer
    if isinstance(mixer, AttentionSpec):
        parameters = _attention(mixer, hidden)
    else:
        parameters = _mamba(mixer, hidden)
    yield from ((f"{mixer.kind}.{name}", shape) for name, shape in parameters)
    yield "feed_forward_norm.weight", (hidden,)
    forward = layer.feed_forward
    places = [""]
    if isinstance(forward, ExpertsSpec):
        yield "feed_forward.router.weight", (forward.num_experts, hidden)
        places = [f"experts.{expert}." for expert in range(forward.num_experts)]
    inner = forward.intermediate_size
    for place in places:
        for matrix in EXPERT_MATRICES:
            shape = (hidden, inner) if matrix == "down" else (inner, hidden)
            yield f"feed_forward.{place}{matrix}.weight", shape


def _attention(spec: AttentionSpec, hidden: int) -> Shapes:
    for name, rows in (("q", spec.q_size), ("k", spec.kv_size), ("v", spec.kv_size)):
        yield f"{name}_proj.weight", (rows, hidden)
    yield "o_proj.weight", (hidden, spec.q_size)


def _mamba(spec: MambaSpec, hidden: int) -> Shapes:
    inner, rank, state = spec.d_inner, spec.dt_rank, spec.d_state
    yield "in_proj.weight", (2 * inner, hidden)
    yield "conv1d.weight", (inner, 1, spec.d_conv)
    yield "conv1d.bias", (inner,)
    yield "x_proj.weight", (rank + 2 * state, inner)
    yield "dt_norm.weight", (rank,)
    yield "B_norm.weight", (state,)
    yield "C_norm.weight", (state,)
    yield from _linear("dt_proj", inner, rank)
    yield "A_log", (inner, state)
    yield "D", (inner,)
    yield "out_proj.weight", (hidden, inner)


def _connector(spec: ConnectorSpec, width: int, hidden: int) -> Shapes:
    """Yield the linear layers; between two of them is an activation, which has a number too."""
    for layer in range(spec.num_layers):
        columns = width if layer == 0 else hidden
        yield f"{PROJECTOR}{2 * layer}.weight", (hidden, columns)
        if spec.bias:
            yield f"{PROJECTOR}{2 * layer}.bias", (hidden,)


def _vision_tower(spec: VisionSpec) -> Shapes:
    width, inner = spec.hidden_size, spec.intermediate_size
    yield "embeddings.class_embedding", (width,)
    yield "embeddings.patch_embedding.weight", (width, 3, spec.patch_size, spec.patch_size)
    yield "embeddings.position_embedding.weight", (spec.num_patches + 1, width)
    yield from _layer_norm("pre_layrnorm", width)
    for layer in range(spec.num_layers):
        prefix = f"encoder.layers.{layer}."
        for name in ("q", "k", "v", "out"):
            yield from _linear(f"{prefix}self_attn.{name}_proj", width, width)
        yield from _layer_norm(f"{prefix}layer_norm1", width)
        yield from _linear(f"{prefix}mlp.fc1", inner, width)
        yield from _linear(f"{prefix}mlp.fc2", width, inner)
        yield from _layer_norm(f"{prefix}layer_norm2", width)
    yield from _layer_norm("post_layernorm", width)


def _linear(name: str, rows: int, columns: int) -> Shapes:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def _layer_norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
