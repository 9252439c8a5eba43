"""The original's answers from exported bundles: prompts, positions, scores and tokens of whole questions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from longllava_trt.export.bundle import export_bundle
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.runtime.session import Session
from longllava_trt.runtime.timings import RequestMetrics
from tests.export.stored_traces import stored_traces, traces_folder
from tests.models.llava.gold import CASES, CHECKPOINTS, DATA, GoldCase, gold_case

_QUESTIONS = {
    "one": "What is shown in the picture?",
    "two": "<image>\nand <image> : how many birds?",
    "text": "Describe the roof. Ünï  two  spaces, 123\nnew line 🙂",
    "small": "Describe the image.",
    "mistral": "What is shown?",
    "chatml": "What is shown?",
    "llama_2": "What is shown?",
}
NAMED = {"mistral", "chatml", "llama_2"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("llava")
    with stored_traces(traces_folder(tmp_path_factory)):
        for name in CHECKPOINTS:
            export_bundle(DATA / name, folder / name)
    return {name: folder / name for name in CHECKPOINTS}


def opened(bundle: Path, case: str, *, kernels: str = "onnx") -> LongLLaVA:
    default = "v0" if bundle.name == "llava-1" else "v1"
    options = RunOptions(
        backend="ort",
        kernels=kernels,  # type: ignore[arg-type]
        prompt_format=case if case in NAMED else default,
        chunk_size=97,
    )
    return LongLLaVA.from_bundle(bundle, options)


def check(session: Session, question: str, gold: GoldCase, *, shows: bool = True) -> None:
    """Compare the answer to a question and the scores of its first token."""
    pictures = gold.pictures if shows else ()
    answer = session.ask(question, images=pictures, max_new_tokens=len(gold.tokens))
    assert answer.prompt_tokens == gold.positions
    assert list(answer.token_ids) == gold.tokens
    scores = session.score(question, gold.tokens[:2], images=pictures)
    assert gold.at[-1] == gold.positions - 1
    np.testing.assert_allclose(scores[0], gold.logits[-1], atol=1e-4 * np.abs(gold.logits).max())


@pytest.mark.parametrize(("name", "case"), [c for c in CASES if c[1] != "turns"])
def test_answers_are_the_original_s(bundles: dict[str, Path], name: str, case: str) -> None:
    gold = gold_case(name, case)
    check(opened(bundles[name], case).session(), _QUESTIONS[case], gold)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_second_question_after_an_answered_one(bundles: dict[str, Path], name: str) -> None:
    gold = gold_case(name, "turns")
    session = opened(bundles[name], "turns").session()
    sequence, runner = session.sequence, session.sequence.runner
    turn = runner.message("What is this?", images=gold.pictures)
    prompt = partial(sequence.prompt, on_broken="stop", work=RequestMetrics(), remember=True)
    sequence.remember(prompt(turn), "What is this?", "a red circle")
    check(session, "And what is left of it?", gold, shows=False)


@pytest.mark.parametrize("case", ["one", "two"])
def test_fast_kernels_answer_the_same(bundles: dict[str, Path], case: str) -> None:
    gold = gold_case("llava-1.6", case)
    model = opened(bundles["llava-1.6"], case, kernels="fast")
    check(model.session(), _QUESTIONS[case], gold)
