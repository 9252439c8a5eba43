"""Arithmetic, against published figures and against counts made another way."""

from __future__ import annotations

from pathlib import Path

import pytest

from longllava_trt.inspection import count_parameters
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.models.parameters import parameter_shapes
from longllava_trt.models.spec import ModelSpec
from longllava_trt.planning.flops import count_flops, decoder_flops, vision_flops
from tests.planning.paper_count import paper_flops

ROOT = Path(__file__).resolve().parents[2]
NINE, FIFTY_THREE = PRESETS["9b"], PRESETS["53b"]


@pytest.mark.parametrize(
    ("config", "images", "moe_layers", "published"),
    [
        pytest.param(FIFTY_THREE, 54, 12, 0.0789, id="as-the-script-was-committed"),
        pytest.param(FIFTY_THREE, 54, None, 0.0935, id="53b-54"),
        pytest.param(FIFTY_THREE, 128, None, 0.2150, id="53b-128"),
        pytest.param(NINE, 54, None, 0.0643, id="9b-54"),
        pytest.param(NINE, 128, None, 0.1457, id="9b-128"),
    ],
)
def test_paper_count_gives_the_published_petaflops(
    config: ModelSpec, images: int, moe_layers: int | None, published: float
) -> None:
    counted = paper_flops(config, images=images, moe_layers=moe_layers) / 1e15

    assert round(counted, 4) == published


@pytest.mark.parametrize(("name", "config"), [("53B", FIFTY_THREE), ("9B", NINE)])
@pytest.mark.parametrize("images", [54, 128])
def test_the_footnote_gives_both_counts(name: str, config: ModelSpec, images: int) -> None:
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| {name} | {images} |"))
    _, _, paper, ours, *_ = (cell.strip() for cell in row.strip("|").split("|"))
    assert paper == f"{paper_flops(config, images=images) / 1e15:.4f}"
    flops = count_flops(config, views=images, tokens=144 * images)
    assert ours == f"{(flops.decoder_linear + flops.decoder_attention) / 1e15:.3f}"


@pytest.mark.parametrize(
    ("config", "linear"), [(NINE, 0.323), (FIFTY_THREE, 0.427)], ids=["9b", "53b"]
)
def test_honest_count_of_128_images_agrees_with_the_specification(
    config: ModelSpec, linear: float
) -> None:
    flops = count_flops(config, views=128, tokens=18_432)

    assert round(flops.decoder_linear / 1e15, 3) == linear
    assert round(flops.decoder_attention / 1e15, 3) == 0.011


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_linear_count_is_two_operations_for_every_matrix_element_a_token_meets(preset: str) -> None:
    config = PRESETS[preset].decoder
    matrices = {
        name: shape
        for name, shape in parameter_shapes(PRESETS[preset]).items()
        if len(shape) > 1 and not name.endswith(("A_log", "embed_tokens.weight"))
    }
    met = count_parameters(matrices, config).decoder_active
    # the scan has no matrix: decay, input and read-out of every state
    scan = sum(3 * mixer.d_inner * mixer.d_state for mixer in config.mamba_layers.values())

    linear, _ = decoder_flops(config, tokens=1, past=0)

    assert linear == 2 * (met + scan)


def test_vision_counts_what_it_runs_and_not_the_last_layer() -> None:
    # the specification counts all 24 layers: 0.382 TFLOP an image
    assert vision_flops(NINE.require_vision()) == pytest.approx(0.382e12 * 23 / 24, rel=2e-3)


@pytest.mark.parametrize("split", [1, 17, 99])
def test_attention_of_two_chunks_is_attention_of_the_whole(split: int) -> None:
    decoder = PRESETS["tiny"].decoder
    _, whole = decoder_flops(decoder, tokens=100, past=0)
    _, first = decoder_flops(decoder, tokens=split, past=0)
    _, second = decoder_flops(decoder, tokens=100 - split, past=split)

    assert first + second == pytest.approx(whole, rel=1e-12)
