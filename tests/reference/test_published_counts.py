"""Parameters of the published sizes, counted by transformers' own classes on the meta device."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from longllava_trt.models.clip import clip_config
from longllava_trt.models.jamba_layers import JAMBA_KEYS
from longllava_trt.models.parameters import VISION, decoder_parameters, parameter_shapes
from longllava_trt.models.registry import find_preset
from longllava_trt.models.spec import AttentionSpec, ConnectorSpec, DecoderSpec
from longllava_trt.models.towers import TOWERS
from tests.reference.conftest import small_config

transformers = pytest.importorskip("transformers")


def count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def llama_config(decoder: DecoderSpec) -> Any:
    mixer, forward = decoder.layers[0].mixer, decoder.layers[0].feed_forward
    assert isinstance(mixer, AttentionSpec)
    return transformers.LlamaConfig(
        vocab_size=decoder.vocab_size,
        hidden_size=decoder.hidden_size,
        intermediate_size=forward.intermediate_size,
        num_hidden_layers=decoder.num_layers,
        num_attention_heads=mixer.num_heads,
        num_key_value_heads=mixer.num_kv_heads,
    )


@pytest.mark.parametrize("preset", ["llava-1.5-7b", "llava-1.5-13b", "llava-1.6-mistral-7b"])
def test_llama_and_mistral(preset: str) -> None:
    decoder = find_preset(preset).decoder
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(llama_config(decoder))
    assert sum(map(math.prod, decoder_parameters(decoder).values())) == count(theirs)


def test_jamba() -> None:
    spec = find_preset("jamba-3b")
    keys = {key: spec.source[key] for key in JAMBA_KEYS}
    with torch.device("meta"):
        theirs = transformers.JambaForCausalLM(
            transformers.JambaConfig(**keys, tie_word_embeddings=True)
        )
    assert sum(map(math.prod, parameter_shapes(spec).values())) == count(theirs)


@pytest.mark.parametrize("name", TOWERS)
def test_towers(name: str) -> None:
    with torch.device("meta"):
        config = transformers.CLIPVisionConfig(**clip_config(TOWERS[name]))
        theirs = transformers.CLIPVisionModel(config)
    # a small model with the tower; nothing pools its patches
    spec = replace(small_config(), connector=ConnectorSpec(), vision=TOWERS[name])
    shapes = {k: s for k, s in parameter_shapes(spec).items() if k.startswith(VISION)}
    assert sum(map(math.prod, shapes.values())) == count(theirs)
