"""The LLaVA series on our kernels' plain versions: rotary positions, tiles and newlines answer as the original does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longllava_trt.export.bundle import export_bundle
from longllava_trt.models.registry import load_bundle_spec
from longllava_trt.runtime.backends.kernels.rotary import rotary_table_bytes, rotary_tables
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from tests.models.llava.gold import DATA, gold_case


@pytest.mark.usefixtures("plain_versions", "traced_before")
@pytest.mark.parametrize("name", ["llava-1", "llava-1.6"])
def test_answers_are_the_original_s(tmp_path: Path, name: str) -> None:
    gold = gold_case(name, "one")
    export_bundle(DATA / name, tmp_path / "bundle")
    chat = "v0" if name == "llava-1" else "v1"
    options = RunOptions(
        backend="kernels", chunk_size=200, vision_batch=2, max_context=2000, prompt_format=chat
    )
    session = LongLLaVA.from_bundle(tmp_path / "bundle", options).session()
    question = "What is shown in the picture?"
    answer = session.ask(question, images=gold.pictures, max_new_tokens=4)
    assert answer.prompt_tokens == gold.positions
    assert list(answer.token_ids) == gold.tokens[:4]
    scores = session.score(question, gold.tokens[:1], images=gold.pictures)
    np.testing.assert_allclose(scores[0], gold.logits[-1], atol=1e-4 * np.abs(gold.logits).max())


def test_one_table_serves_all_layers_and_is_counted() -> None:
    import torch

    decoder = load_bundle_spec(DATA / "llava-1.6").decoder
    mixer = decoder.attention_layers[0]
    assert mixer.rotary is not None
    device = torch.device("cpu")
    cos, sin = rotary_tables(mixer.rotary, mixer.head_dim, 50, device)
    again, _ = rotary_tables(mixer.rotary, mixer.head_dim, 50, device)
    assert again is cos
    assert cos.nbytes + sin.nbytes == rotary_table_bytes(decoder, 50)
