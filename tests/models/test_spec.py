"""A model's description checks itself, and says what follows from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from longllava_trt.core.errors import ConfigError
from longllava_trt.models.contracts import stage_specs
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.models.parameters import HEAD, parameter_shapes
from longllava_trt.models.spec import (
    AttentionSpec,
    ConnectorSpec,
    DecoderSpec,
    DenseSpec,
    ExpertsSpec,
    ImageSpec,
    LayerSpec,
    MambaSpec,
    ModelSpec,
    RotarySpec,
    VisionSpec,
)

LAYER = LayerSpec(
    mixer=AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8),
    feed_forward=DenseSpec(intermediate_size=48),
)
TEXT = ModelSpec(
    model_type="text",
    decoder=DecoderSpec(layers=(LAYER,), vocab_size=11, hidden_size=24, rms_norm_eps=1e-6),
)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (VisionSpec, {"hidden_size": 0}, "vision tower: must be positive: hidden_size=0"),
        (VisionSpec, {"num_heads": 3}, "vision tower: 1024 is not divisible by 3"),
        (VisionSpec, {"activation": "relu"}, "activation must be quick_gelu or gelu, got 'relu'"),
        (VisionSpec, {"feature_layers": (-26,)}, "feature layers must be among 25 hidden states"),
        (VisionSpec, {"feature_layers": ()}, "feature layers must be among 25 hidden states"),
        (VisionSpec, {"image_size": 13}, "must hold a patch of 14 pixels"),
        (ConnectorSpec, {"pooling": 3}, "pooling 1 or 2, got 2 and 3"),
        (AttentionSpec, {"num_heads": 4, "num_kv_heads": 3, "head_dim": 8}, "4 is not divisible"),
        (RotarySpec, {"theta": -1.0}, "rotary positions: must be positive: theta=-1.0"),
        (MambaSpec, {"d_inner": 8, "d_state": 0, "d_conv": 4, "dt_rank": 2}, "d_state=0"),
        (ExpertsSpec, {"num_experts": 2, "top_k": 3, "intermediate_size": 8}, "3 of them cannot"),
        (ImageSpec, {"aspect_ratio": "anyres"}, "come together, got 'anyres' and 0 pinpoints"),
        (ImageSpec, {"pinpoints": ((2, 2),)}, "come together, got 'square' and 1 pinpoints"),
        (ModelSpec, {"model_type": "x", "decoder": TEXT.decoder, "vision": VisionSpec()}, "or not"),
    ],
)
def test_what_cannot_be_is_refused(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**fields)
    assert message in str(caught.value)


def test_pooling_needs_an_even_grid_of_patches_alone() -> None:
    pooled = ConnectorSpec(pooling=2)
    for vision in (VisionSpec(image_size=42), VisionSpec(keep_class_token=True)):
        with pytest.raises(ConfigError, match="so that 2x2 pooling is exact"):
            replace(TEXT, vision=vision, connector=pooled)
        assert replace(TEXT, vision=vision, connector=ConnectorSpec()).num_image_tokens > 0


def test_pinpoints_are_whole_tiles() -> None:
    model = replace(TEXT, vision=VisionSpec(image_size=42), connector=ConnectorSpec())
    for pinpoint, fits in (((42, 84), True), ((42, 85), False), ((83, 42), False)):
        images = ImageSpec(aspect_ratio="anyres", pinpoints=(pinpoint,))
        if fits:
            assert replace(model, images=images).images.pinpoints == (pinpoint,)
        else:
            with pytest.raises(ConfigError, match="multiples of the tower's image_size 42"):
                replace(model, images=images)


@pytest.mark.parametrize(
    ("vision", "pooling", "tokens", "layers"),
    [
        (VisionSpec(), 2, 144, 23),
        (VisionSpec(), 1, 576, 23),
        (VisionSpec(keep_class_token=True, feature_layers=(-1,)), 1, 577, 24),
        (VisionSpec(image_size=224, feature_layers=(3, -2)), 1, 256, 23),
    ],
    ids=["LongLLaVA", "LLaVA-1.5", "class-token", "two-layers"],
)
def test_positions_of_an_image_follow_from_tower_and_connector(
    vision: VisionSpec, pooling: int, tokens: int, layers: int
) -> None:
    model = replace(TEXT, vision=vision, connector=ConnectorSpec(pooling=pooling))
    assert (model.num_image_tokens, vision.num_run_layers) == (tokens, layers)
    stages = stage_specs(model, "float32")
    assert stages["vision"].outputs[0].shape[2] == 1024 * len(vision.feature_layers)
    assert stages["projector"].outputs[0].shape == ("num_images", tokens, 24)


def test_a_model_of_text_has_two_stages_and_no_image() -> None:
    assert tuple(stage_specs(TEXT, "float32")) == TEXT.stages == ("embed", "decoder")
    assert TEXT.num_image_tokens == 0
    with pytest.raises(ConfigError, match="no vision tower"):
        TEXT.require_vision()


def test_tied_embeddings_have_no_head_of_their_own() -> None:
    tied = replace(TEXT, decoder=replace(TEXT.decoder, tie_embeddings=True))
    assert parameter_shapes(TEXT).keys() - parameter_shapes(tied).keys() == {HEAD}


def test_layers_are_told_by_their_kind() -> None:
    decoder = PRESETS["53b"].decoder
    assert list(decoder.attention_layers) == [4, 12, 20, 28]
    assert len(decoder.mamba_layers) == 28
    assert list(decoder.moe_layers) == list(range(1, 32, 2))
