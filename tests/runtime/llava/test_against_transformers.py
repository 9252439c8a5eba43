"""Pictures to tokens: bundles of Hugging Face's checkpoints answer as transformers' own models and processors do."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longllava_trt.export.bundle import export_bundle
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from tests.llava_series import MISTRAL_TEMPLATE, VICUNA_TEMPLATE
from tests.models.llava.gold import DATA
from tests.reference.conftest import randomise

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

QUESTION = "What is left of the tower?"
NEW_TOKENS = 32
SIDE = 56
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 14,
}
TEXT = {
    "vocab_size": 512,  # ten more than the tokenizer has
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class Pair:
    """transformers' model with its processor, and the bundle of what they have written."""

    model: Any
    processor: Any
    bundle: Path


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(5)
    sizes = [(90, 61), (30, 140)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def tokenizer_in(folder: Path) -> Any:
    folder.mkdir()
    shutil.copyfile(DATA / "llava-1.5" / "tokenizer.model", folder / "tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    image = transformers.AddedToken("<image>", special=True, normalized=False)
    tokenizer.add_tokens([image], special_tokens=True)
    return tokenizer


def made(kind: str, folder: Path) -> Pair:
    tokenizer = tokenizer_in(folder / "tokenizer")
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    shared: dict[str, Any] = {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    is_next = kind.startswith("next")
    is_mistral = kind.endswith("mistral")
    text = transformers.LlamaConfig(**TEXT)
    if is_mistral:
        rope = {"rope_type": "default", "rope_theta": 1e6}
        text = transformers.MistralConfig(
            **TEXT, num_key_value_heads=2, sliding_window=None, rope_parameters=rope
        )
    parts = {
        "text_config": text,
        "vision_config": transformers.CLIPVisionConfig(**VISION),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "attn_implementation": "eager",
    }
    if is_next:
        images = transformers.LlavaNextImageProcessorPil(image_grid_pinpoints=PINPOINTS, **size)
        template = MISTRAL_TEMPLATE if is_mistral else VICUNA_TEMPLATE
        processor = transformers.LlavaNextProcessor(
            images, tokenizer, chat_template=template, **shared
        )
        config = transformers.LlavaNextConfig(image_grid_pinpoints=PINPOINTS, **parts)
        model = transformers.LlavaNextForConditionalGeneration(config)
    else:
        images = transformers.LlavaImageProcessorPil(do_pad=kind == "pad", **size)
        processor = transformers.LlavaProcessor(
            images, tokenizer, chat_template=VICUNA_TEMPLATE, **shared
        )
        model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**parts))
    model.eval().requires_grad_(False)
    randomise(model)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder / "checkpoint")
    processor.save_pretrained(folder / "checkpoint")
    export_bundle(folder / "checkpoint", folder / "bundle")
    return Pair(model, processor, folder / "bundle")


@pytest.fixture(scope="module", params=["crop", "pad", "next", "next-mistral"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return made(request.param, tmp_path_factory.mktemp(request.param))


def theirs(pair: Pair, shown: list[Image.Image]) -> tuple[int, list[int]]:
    """Return the length of the prompt, and the tokens of the answer."""
    content: list[Any] = [{"type": "image", "image": picture} for picture in shown]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]
    inputs = pair.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    found = pair.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return length, found[0, length:].tolist()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_answers_are_those_of_transformers(pair: Pair, count: int) -> None:
    shown = pictures()[:count]
    model = LongLLaVA.from_bundle(pair.bundle, RunOptions(backend="ort", kernels="onnx"))
    answer = model.generate(QUESTION, shown, max_new_tokens=NEW_TOKENS)
    length, tokens = theirs(pair, shown)
    assert answer.prompt_tokens == length
    assert list(answer.token_ids) == [token for token in tokens if token != 2]


def test_chunks_and_fast_kernels_answer_the_same(pair: Pair) -> None:
    shown = pictures()
    model = LongLLaVA.from_bundle(pair.bundle, RunOptions(backend="ort", chunk_size=7))
    answer = model.generate(QUESTION, shown, max_new_tokens=NEW_TOKENS)
    assert list(answer.token_ids) == [token for token in theirs(pair, shown)[1] if token != 2]
