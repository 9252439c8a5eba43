"""LLaVA's reference against code nobody here wrote, on checkpoints that transformers writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from longllava_trt.reference.cache import empty_cache
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.generate import greedy_tokens, prefill
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.reference.operators import TorchOperators
from longllava_trt.reference.rotary import rotary_tables
from tests.reference.against_transformers import (
    IMAGE_TOKEN,
    llava_config,
    prompt,
    relative_error,
    saved_and_read,
)

transformers = pytest.importorskip("transformers")

LIMIT, STEPS_LIMIT = 1e-4, 1e-5
MISTRAL: dict[str, Any] = {"num_key_value_heads": 2, "sliding_window": None}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, {}, {}),
    "mistral": (
        {**MISTRAL, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {},
        {},
    ),
    "linear-scaling": (
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        {},
        {},
    ),
    "llama3-scaling": (
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {},
        {},
    ),
    "head-dim-and-tied": ({"head_dim": 24}, {}, {"tie_word_embeddings": True}),
    "two-feature-layers": ({}, {"hidden_act": "gelu"}, {"vision_feature_layer": [1, -2]}),
    "class-token": ({}, {}, {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}),
    "no-bias": ({}, {"hidden_act": "gelu"}, {"multimodal_projector_bias": False}),
}


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, LongLLaVA]:
    """transformers' model, and ours of the same checkpoint."""
    text, vision, keys = CASES[request.param]
    config = llava_config("llava", text, vision, **keys)
    theirs = transformers.LlavaForConditionalGeneration(config)
    return theirs, saved_and_read(theirs, tmp_path)


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Any, LongLLaVA]:
    """The plainest of them."""
    theirs = transformers.LlavaForConditionalGeneration(llava_config("llava", {}, {}))
    return theirs, saved_and_read(theirs, tmp_path)


def pixels(count: int, size: int = 56) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def splice(model: LongLLaVA, ids: Tensor, rows: Tensor) -> Tensor:
    """Put rows [n, hidden_size] at the image tokens of ids [1, length]."""
    embeds = model.embed(ids)
    embeds[ids == IMAGE_TOKEN] = rows
    return embeds


def assembled(model: LongLLaVA, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids and embeddings of a prompt with images, and their pixels."""
    images = pixels(count)
    rows = model.project(model.encode_images(images))
    ids = prompt([rows.shape[1]] * count)
    return ids, splice(model, ids, rows.flatten(0, 1)), images


@torch.no_grad()
def all_logits(model: LongLLaVA, embeds: Tensor) -> Tensor:
    cache = empty_cache(model.config.decoder, batch=embeds.shape[0])
    return model.decode(embeds, cache, all_logits=True).logits


@torch.no_grad()
def test_logits_and_tokens_are_those_of_transformers(pair: tuple[Any, LongLLaVA]) -> None:
    theirs, ours = pair
    ids, embeds, images = assembled(ours)
    expected = theirs(input_ids=ids, pixel_values=images).logits
    assert relative_error(all_logits(ours, embeds), expected) <= LIMIT
    written = theirs.generate(
        input_ids=ids, pixel_values=images, max_new_tokens=32, do_sample=False, eos_token_id=None
    )
    found = [token for token, _ in greedy_tokens(ours, embeds, max_new_tokens=32)]
    # ours never ends: the file has no end id
    assert found == written[0, ids.shape[1] :].tolist()


@torch.no_grad()
def test_whole_equals_chunks_equals_steps(pair: tuple[Any, LongLLaVA]) -> None:
    _, ours = pair
    _, embeds, _ = assembled(ours)
    whole, cache = prefill(ours, embeds)
    for chunk in (7, 1):
        logits, pieces = prefill(ours, embeds, chunk=chunk)
        assert relative_error(logits, whole) <= STEPS_LIMIT
        for a, b in zip(pieces, cache, strict=True):
            assert relative_error(a[0], b[0]) <= STEPS_LIMIT


@torch.no_grad()
@pytest.mark.parametrize("is_mistral", [False, True], ids=["llama", "mistral"])
def test_tiles_and_newlines_are_those_of_llava_next(tmp_path: Path, is_mistral: bool) -> None:
    """Rows of each tile are ours; transformers puts them together, as in its own model."""
    points = [[56, 112], [112, 56], [112, 112]]
    config = llava_config(
        "llava_next", MISTRAL if is_mistral else {}, {}, image_grid_pinpoints=points
    )
    theirs = transformers.LlavaNextForConditionalGeneration(config)
    ours = saved_and_read(theirs, tmp_path)
    assert ours.config.title == ("LLaVA-1.6 (Mistral)" if is_mistral else "LLaVA-1.6")
    assert ours.config.images.pinpoints == ((112, 56), (56, 112), (112, 112))
    tiles, sizes = pixels(5)[None], torch.tensor([[90, 100]])
    rows = ours.project(ours.encode_images(tiles[0]))
    packed, _ = theirs.model.pack_image_features(
        [rows], sizes, "default", image_newline=ours.image_newline
    )
    packed = packed[0] if isinstance(packed, list | tuple) else packed
    ids = prompt([packed.shape[0]])
    expected = theirs(input_ids=ids, pixel_values=tiles, image_sizes=sizes).logits
    assert relative_error(all_logits(ours, splice(ours, ids, packed)), expected) <= LIMIT


@torch.no_grad()
def test_names_in_memory_load_as_well(llama: tuple[Any, LongLLaVA], tmp_path: Path) -> None:
    theirs, ours = llama
    folder = tmp_path / "in-memory"
    folder.mkdir()
    (folder / "config.json").write_text((tmp_path / "config.json").read_text())
    save_file(theirs.state_dict(), folder / "model.safetensors")
    again = load_model(folder).state_dict()
    assert all(torch.equal(again[name], value) for name, value in ours.state_dict().items())


class Interleaved(TorchOperators):
    """Pairs of neighbours instead of halves."""

    def rotate(self, q, k, state, rotary):  # type: ignore[no-untyped-def]
        positions = torch.arange(state.key.shape[2], state.key.shape[2] + q.shape[2])
        cosine, sine = rotary_tables(positions, rotary, q.shape[-1], q.dtype)

        def turn(x: Tensor) -> Tensor:
            a, b = x[..., ::2], x[..., 1::2]
            return torch.stack([a * cosine - b * sine, b * cosine + a * sine], -1).flatten(-2)

        return turn(q), turn(k)


class OneTooFar(TorchOperators):
    """Positions one too far when something is cached."""

    def rotate(self, q, k, state, rotary):  # type: ignore[no-untyped-def]
        if state.key.shape[2]:
            longer = torch.cat([state.key, state.key[:, :, :1]], dim=2)
            state = state._replace(key=longer)
        return super().rotate(q, k, state, rotary)


class NoPositions(TorchOperators):
    """No rotation at all."""

    def rotate(self, q, k, state, rotary):  # type: ignore[no-untyped-def]
        return q, k


@pytest.mark.parametrize("wrong", [Interleaved, NoPositions])
@torch.no_grad()
def test_wrong_rotations_fail(llama: tuple[Any, LongLLaVA], wrong: type) -> None:
    theirs, ours = llama
    ids, embeds, images = assembled(ours)
    expected = theirs(input_ids=ids, pixel_values=images).logits
    ours.ops = wrong()
    assert relative_error(all_logits(ours, embeds), expected) > 100 * LIMIT


@torch.no_grad()
def test_positions_off_by_one_fail(llama: tuple[Any, LongLLaVA]) -> None:
    theirs, ours = llama
    ids, embeds, images = assembled(ours)
    expected = theirs(input_ids=ids, pixel_values=images).logits[:, -1:]
    right, _ = prefill(ours, embeds, chunk=11)
    assert relative_error(right, expected) <= LIMIT
    ours.ops = OneTooFar()
    wrong, _ = prefill(ours, embeds, chunk=11)
    assert relative_error(wrong, expected) > 100 * LIMIT


@torch.no_grad()
def test_tanh_gelu_and_a_class_token_fail(
    llama: tuple[Any, LongLLaVA], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = llama
    images = pixels(2)
    expected = theirs.model.get_image_features(pixel_values=images)
    expected = getattr(expected, "pooler_output", expected)
    rows = torch.stack(list(expected))
    assert relative_error(ours.project(ours.encode_images(images)), rows) <= LIMIT
    ours.vision.keep_class_token = True
    kept = ours.project(ours.encode_images(images))
    assert relative_error(kept[:, : rows.shape[1]], rows) > 100 * LIMIT
    ours.vision.keep_class_token = False
    tanh = [
        torch.nn.GELU("tanh") if isinstance(module, torch.nn.GELU) else module
        for module in ours.projector
    ]
    ours.projector = torch.nn.Sequential(*tanh)
    assert relative_error(ours.project(ours.encode_images(images)), rows) > LIMIT
    monkeypatch.undo()


class _Other(torch.nn.Module):
    """An MLP with another activation."""

    def __init__(self, mlp: Any, activation: Any) -> None:
        super().__init__()
        self.mlp, self.activation = mlp, activation

    def forward(self, x: Tensor) -> Any:
        return self.mlp.fc2(self.activation(self.mlp.fc1(x)))


@torch.no_grad()
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_activations_of_the_tower_are_told_apart(tmp_path: Path, activation: str) -> None:
    config = llava_config("llava", {}, {"hidden_act": activation})
    theirs = transformers.LlavaForConditionalGeneration(config)
    ours = saved_and_read(theirs, tmp_path)
    images = pixels(1)
    expected = theirs.model.vision_tower(images, output_hidden_states=True).hidden_states
    assert relative_error(ours.encode_images(images), expected[-2][:, 1:]) <= LIMIT
    other = F.gelu if activation == "quick_gelu" else lambda x: x * torch.sigmoid(1.702 * x)
    for layer in ours.vision.encoder.layers:
        layer.mlp = _Other(layer.mlp, other)
    assert relative_error(ours.encode_images(images), expected[-2][:, 1:]) > 10 * LIMIT
