"""Text-only Jamba against transformers, on checkpoints that transformers writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longllava_trt.reference.cache import empty_cache
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.generate import greedy_tokens, prefill
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.reference.operators import TorchOperators
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from tests.reference.against_transformers import relative_error, saved_and_read

transformers = pytest.importorskip("transformers")

LIMIT, STEPS_LIMIT = 1e-4, 1e-5
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mamba_dt_rank": 4,
    "attn_implementation": "eager",
}
CASES: dict[str, dict[str, Any]] = {
    "routed": {"num_experts": 4},
    "routed-tied": {"num_experts": 4, "tie_word_embeddings": True},
    "dense-tied": {"num_experts": 1, "num_experts_per_tok": 1, "tie_word_embeddings": True},
    "other-pattern": {
        "num_experts": 16,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 3,
        "expert_layer_offset": 2,
        "num_key_value_heads": 1,
    },
}


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, LongLLaVA, Path]:
    """transformers' model, ours of the same checkpoint, and the checkpoint."""
    config = transformers.JambaConfig(**{**SIZES, **CASES[request.param]})
    theirs = transformers.JambaForCausalLM(config)
    return theirs, saved_and_read(theirs, tmp_path), tmp_path


def ids_of(length: int) -> torch.Tensor:
    return torch.randint(3, 90, (1, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_logits_are_those_of_transformers(pair: tuple[Any, LongLLaVA, Path]) -> None:
    theirs, ours, _ = pair
    ids = ids_of(41)
    expected = theirs(ids, use_cache=False).logits
    cache = empty_cache(ours.config.decoder)
    output = ours.decode(ours.embed(ids), cache, all_logits=True)
    assert relative_error(output.logits, expected) <= LIMIT


@torch.no_grad()
def test_whole_equals_chunks_equals_steps(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", preset="jamba-tiny")
    model = load_model(tmp_path / "model")
    embeds = model.embed(ids_of(41))
    whole, _ = prefill(model, embeds)
    for chunk in (7, 1):
        logits, _ = prefill(model, embeds, chunk=chunk)
        assert relative_error(logits, whole) <= STEPS_LIMIT


@torch.no_grad()
def test_greedy_tokens_are_those_of_transformers(pair: tuple[Any, LongLLaVA, Path]) -> None:
    theirs, ours, _ = pair
    ids = ids_of(9)
    written = ids
    for _ in range(32):
        scores = theirs(written, use_cache=False).logits[:, -1]
        scores[:, list(ours.config.eos_token_ids)] = float("-inf")
        written = torch.cat([written, scores.argmax(-1, keepdim=True)], dim=1)
    embeds = ours.embed(ids)
    logits, cache = prefill(ours, embeds)
    found = []
    for _ in range(32):
        logits[..., list(ours.config.eos_token_ids)] = float("-inf")
        found.append(int(logits.argmax()))
        output = ours.decode(ours.embed(torch.tensor([found[-1:]])), cache)
        logits, cache = output.logits, output.cache
    assert found == written[0, 9:].tolist()
    assert next(greedy_tokens(ours, embeds, max_new_tokens=1))[0] == found[0]


@torch.no_grad()
def test_both_layouts_of_experts_give_the_same_model(
    pair: tuple[Any, LongLLaVA, Path], tmp_path: Path
) -> None:
    """Stacked as transformers 5 has them in memory, and each by itself as in published files."""
    theirs, ours, folder = pair
    stacked, single = tmp_path / "stacked", tmp_path / "single"
    in_memory = theirs.state_dict()
    by_expert: dict[str, torch.Tensor] = {}
    for key, value in in_memory.items():
        if key.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(value):
                prefix = key.removesuffix("gate_up_proj") + f"{expert}."
                by_expert[prefix + "gate_proj.weight"], by_expert[prefix + "up_proj.weight"] = (
                    half.contiguous() for half in both.chunk(2)
                )
        elif key.endswith("experts.down_proj"):
            for expert, down in enumerate(value):
                by_expert[key.removesuffix("down_proj") + f"{expert}.down_proj.weight"] = (
                    down.clone()
                )
        else:
            by_expert[key] = value.clone()
    assert (in_memory.keys() != by_expert.keys()) == bool(ours.config.decoder.moe_layers)
    expected = ours.state_dict()
    for place, tensors in ((stacked, in_memory), (single, by_expert)):
        place.mkdir()
        (place / "config.json").write_text((folder / "config.json").read_text())
        # a copy of a tied head is in both, as in some published files
        save_file({k: v.clone() for k, v in tensors.items()}, place / "model.safetensors")
        found = load_model(place).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@torch.no_grad()
def test_a_tied_head_is_the_table(tmp_path: Path) -> None:
    config = transformers.JambaConfig(**{**SIZES, **CASES["dense-tied"]})
    ours = saved_and_read(transformers.JambaForCausalLM(config), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in stored
    assert not hasattr(ours, "lm_head")
    hidden = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(4))
    normed = ours.final_norm(hidden, TorchOperators())
    expected = normed @ stored["model.embed_tokens.weight"].T
    torch.testing.assert_close(ours.score(hidden), expected)
