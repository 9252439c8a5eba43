"""Presets of the LLaVA series: published sizes, and files that read back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from longllava_trt.core.errors import InputError
from longllava_trt.models.llava.presets import PRESETS, PUBLISHED
from longllava_trt.models.parameters import PROJECTOR, VISION, parameter_shapes
from longllava_trt.models.registry import load_model_spec
from longllava_trt.models.spec import AttentionSpec, ModelSpec
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint

TINY = sorted(PRESETS.keys() - PUBLISHED)


def count(spec: ModelSpec) -> dict[str, int]:
    parts = {"vision": 0, "projector": 0, "decoder": 0}
    for path, shape in parameter_shapes(spec).items():
        part = {VISION: "vision", PROJECTOR: "projector"}.get(path.split(".")[0] + ".", "decoder")
        parts[part] += math.prod(shape)
    return parts


@pytest.mark.parametrize(
    ("preset", "decoder"),
    [
        ("llava-1.5-7b", 6_738_415_616),
        ("llava-1.5-13b", 13_015_864_320),
        ("llava-1.6-mistral-7b", 7_241_732_096 + 4096),
    ],
)
def test_published_sizes(preset: str, decoder: int) -> None:
    spec = PRESETS[preset]
    parts = count(spec)
    assert parts["decoder"] == decoder
    assert parts["vision"] == 303_507_456
    model = LongLLaVA.on_meta(spec)
    assert sum(p.numel() for p in model.parameters()) == sum(parts.values())
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == parameter_shapes(spec)


def test_a_token_of_the_7b_takes_half_a_megabyte_of_keys_and_values() -> None:
    mixers = PRESETS["llava-1.5-7b"].decoder.mixers
    assert sum(2 * 2 * m.kv_size for m in mixers if isinstance(m, AttentionSpec)) == 524_288


@pytest.mark.parametrize("preset", TINY)
def test_both_formats_read_back_with_the_same_weights(tmp_path: Path, preset: str) -> None:
    write_checkpoint(tmp_path / "original", preset=preset)
    spec = PRESETS[preset]
    assert load_model_spec(tmp_path / "original") == spec
    if spec.images.use_start_end:
        with pytest.raises(InputError, match="which transformers' format cannot say; use --format"):
            write_checkpoint(tmp_path / "hf", preset=preset, checkpoint_format="huggingface")
        return
    write_checkpoint(tmp_path / "hf", preset=preset, checkpoint_format="huggingface")
    theirs = load_model_spec(tmp_path / "hf")
    assert (theirs.title, theirs.decoder, theirs.vision) == (spec.title, spec.decoder, spec.vision)
    expected = load_model(tmp_path / "original").state_dict()
    found = load_model(tmp_path / "hf").state_dict()
    newline = {"image_newline"} if spec.images.has_newline else set()
    assert found.keys() == expected.keys()
    assert newline <= found.keys()
    assert all(found[name].equal(value) for name, value in expected.items())


def test_fewer_layers_are_written_as_fewer(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "cut", preset="llava-1.5-tiny", layers=2)
    whole = PRESETS["llava-1.5-tiny"]
    cut = replace(whole, decoder=replace(whole.decoder, layers=whole.decoder.layers[:2]))
    assert load_model_spec(tmp_path / "cut") == cut


def test_an_unknown_format_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        write_checkpoint(tmp_path / "x", preset="llava-1.5-tiny", checkpoint_format="stacked")
    assert str(caught.value) == (
        "synth: format of preset llava-1.5-tiny must be one of original, huggingface, got 'stacked'"
    )
