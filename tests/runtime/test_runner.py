"""The values in a bundle's side files are all used, or refused when the bundle is opened."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from longllava_trt.core.errors import LongLLaVAError, ManifestError
from longllava_trt.core.manifest import Manifest
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.runtime.runner import read_end_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOCAB = 512


def write(folder: Path, value: Any) -> Path:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({} if value is Ellipsis else {"eos_token_id": value}))
    return path


@pytest.mark.parametrize(
    ("value", "ids"), [(2, (2,)), ([2], (2,)), ([2, 511, 2], (2, 511)), (0, (0,))], ids=str
)
def test_end_ids_are_one_or_several(tmp_path: Path, value: Any, ids: tuple[int, ...]) -> None:
    assert read_end_ids(write(tmp_path, value), VOCAB) == ids


@pytest.mark.parametrize(
    "value", [..., None, [], "2", 2.0, True, -1, 512, [2, 512], [2, None], {"a": 2}], ids=str
)
def test_end_ids_that_cannot_end_an_answer_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(
        ManifestError, match=r"generation_config.json: 'eos_token_id' must be an id"
    ):
        read_end_ids(write(tmp_path, value), VOCAB)


def test_a_bundle_with_a_wrong_end_id_is_refused_as_it_is_opened(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json", "vision_tower"):
        (bundle / name).symlink_to(tiny_bundle / name)
    write(bundle, [2, VOCAB])
    with pytest.raises(ManifestError, match=r"an id from 0 to 511 .* got \[2, 512\]"):
        LongLLaVA(bundle, Manifest.load(tiny_bundle), RunOptions())


def test_any_end_id_ends_an_answer(tiny_bundle: Path) -> None:
    model = LongLLaVA.from_bundle(tiny_bundle, RunOptions(num_threads=1))
    whole = model.generate("Hello", max_new_tokens=12).token_ids
    third = whole[3]
    model.runner.eos_token_ids = (2, third)
    ended = model.generate("Hello", max_new_tokens=12)
    assert ended.token_ids == whole[: whole.index(third)]
    assert ended.finish_reason == "stop"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_scores_that_are_not_finite_end_the_answer_with_their_position(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    model = LongLLaVA.from_bundle(tiny_bundle, RunOptions(num_threads=1))
    decoder, left = model.runner.decoder, [3]
    step = decoder.step

    def spoilt(inputs_embeds: NDArray[np.float32], state: Any) -> NDArray[np.float32]:
        logits = step(inputs_embeds, state)
        left[0] -= 1
        if left[0] == 0:
            logits[7] = value
        return logits

    monkeypatch.setattr(decoder, "step", spoilt)
    session = model.session()
    before = session.num_positions
    with pytest.raises(
        LongLLaVAError, match=r"after position \d+ \(token 3 of the answer\).* id 7 "
    ):
        session.ask("Hello", max_new_tokens=9)
    assert session.num_positions == before


def test_a_model_of_another_family_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    with pytest.raises(
        ManifestError, match=r"model_type 'mixtral' is not known; supported: LongLLaVA"
    ):
        LongLLaVA(tmp_path, replace(Manifest.load(tiny_bundle)), RunOptions())
