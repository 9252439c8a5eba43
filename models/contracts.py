"""Names, shapes and dtypes of every stage, in one place.

Export uses these names for ONNX tensors, the runtime binds them, and tests read them. Dims are
integers or dim names: `batch`, `seq_len`, `capacity` (positions the KV cache has room for),
`num_images`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from longllava_trt.core.stage_spec import PAST_PREFIX, StageSpec, TensorSpec, present_name
from longllava_trt.models.parameters import IMAGE_NEWLINE
from longllava_trt.models.spec import AttentionSpec, DecoderSpec, ModelSpec

__all__ = ["carried_state", "layer_output_names", "stage_specs"]


def carried_state(decoder: DecoderSpec, dtype: str) -> Iterator[TensorSpec]:
    """Yield the decoder's carried state, layer by layer, under its input names.

    Attention layers carry `key` and `value`, written in place. Mamba layers carry `conv_state` (the
    last d_conv - 1 columns before bias and SiLU) and `recurrent_state`, which is float32 for any
    model dtype.
    """
    for layer, mixer in enumerate(decoder.mixers):
        if isinstance(mixer, AttentionSpec):
            shape = ("batch", mixer.num_kv_heads, "capacity", mixer.head_dim)
            for slot in ("key", "value"):
                yield TensorSpec(f"{PAST_PREFIX}{layer}.{slot}", shape, dtype)
        else:
            conv = ("batch", mixer.d_inner, mixer.conv_state_width)
            yield TensorSpec(f"{PAST_PREFIX}{layer}.conv_state", conv, dtype)
            recurrent = ("batch", mixer.d_inner, mixer.d_state)
            yield TensorSpec(f"{PAST_PREFIX}{layer}.recurrent_state", recurrent, "float32")


def layer_output_names(stage: str, spec: ModelSpec) -> tuple[str, ...]:
    """Return the names that the residual stream carries inside a stage after each layer.

    They are values of the graph, not outputs; validation promotes them to outputs in memory.
    """
    layers = {"decoder": spec.decoder.num_layers}
    if spec.vision is not None:
        layers["vision"] = spec.vision.num_run_layers
    return tuple(f"{stage}.layers.{i}.hidden_states" for i in range(layers.get(stage, 0)))


def stage_specs(spec: ModelSpec, dtype: str) -> Mapping[str, StageSpec]:
    """Return the contract of every stage that the model has.

    Args:
        spec: The model.
        dtype: Arithmetic dtype of the exported graphs: float32, float16 or bfloat16.
    """
    decoder = spec.decoder
    input_ids = TensorSpec("input_ids", ("batch", "seq_len"), "int64")
    embeds = TensorSpec("inputs_embeds", ("batch", "seq_len", decoder.hidden_size), dtype)
    past = tuple(carried_state(decoder, dtype))
    present = tuple(TensorSpec(present_name(t.name), t.shape, t.dtype) for t in past)
    past_len = TensorSpec("past_len", ("batch",), "int64")
    logits = TensorSpec("logits", ("batch", 1, decoder.vocab_size), "float32")
    return {
        **_image_stages(spec, dtype),
        "embed": StageSpec("embed", (input_ids,), (embeds,)),
        "decoder": StageSpec("decoder", (embeds, past_len, *past), (logits, *present)),
    }


def _image_stages(spec: ModelSpec, dtype: str) -> Mapping[str, StageSpec]:
    """Return the contracts of tower and projector; none for a text model."""
    vision = spec.vision
    if vision is None:
        return {}
    pixels = TensorSpec(
        "pixel_values", ("num_images", 3, vision.image_size, vision.image_size), "float32"
    )
    features = TensorSpec(
        "image_features", ("num_images", vision.num_features, vision.feature_size), dtype
    )
    image_embeds = TensorSpec(
        "image_embeds", ("num_images", spec.num_image_tokens, spec.decoder.hidden_size), dtype
    )
    newline = [TensorSpec(IMAGE_NEWLINE, (spec.decoder.hidden_size,), dtype)]
    if not spec.images.has_newline:
        newline = []
    return {
        "vision": StageSpec("vision", (pixels,), (features,)),
        "projector": StageSpec("projector", (features,), (image_embeds, *newline)),
    }
