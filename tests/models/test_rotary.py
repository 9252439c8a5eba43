"""Angles of rotary positions equal those of transformers' own formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longllava_trt.models.rotary import inverse_frequencies
from longllava_trt.models.spec import RotarySpec

transformers = pytest.importorskip("transformers")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CASES: dict[str, tuple[RotarySpec, dict[str, Any]]] = {
    "default": (RotarySpec(), {"rope_type": "default"}),
    "mistral": (RotarySpec(theta=1e6), {"rope_type": "default"}),
    "linear": (RotarySpec(scaling="linear", factor=4.0), {"rope_type": "linear", "factor": 4.0}),
    "llama3": (
        RotarySpec(theta=5e5, scaling="llama3", factor=8.0, original_max_positions=8192),
        LLAMA3,
    ),
}


@pytest.mark.parametrize("head_dim", [16, 80, 128])
@pytest.mark.parametrize("case", CASES)
def test_frequencies_are_those_of_transformers(case: str, head_dim: int) -> None:
    rotary, parameters = CASES[case]
    config = transformers.LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=16384,
        rope_parameters={"rope_theta": rotary.theta, **parameters},
    )
    embedding = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    found = inverse_frequencies(rotary, head_dim)
    assert found.dtype == np.float32
    # one power in float32 may differ in its last bit from machine to machine
    np.testing.assert_allclose(found, embedding.inv_freq.numpy(), rtol=3e-7, atol=0)


def test_scaling_changes_something() -> None:
    plain = inverse_frequencies(RotarySpec(theta=5e5), 128)
    linear = inverse_frequencies(RotarySpec(theta=5e5, scaling="linear", factor=4.0), 128)
    np.testing.assert_array_equal(linear, plain / 4)
    scaled = inverse_frequencies(CASES["llama3"][0], 128)
    kept, slowed = scaled == plain, scaled == plain / 8
    assert kept[0]
    assert slowed[-1]
    assert not (kept | slowed).all()
