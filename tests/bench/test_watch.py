"""ONNX Runtime's own time is told from the decode loop's, and watching changes no answer."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from longllava_trt.bench.end_to_end import AnswerRun, measure_answers
from longllava_trt.bench.settings import BenchSettings
from longllava_trt.bench.watch import RuntimeWatch, WatchedSession
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.runtime.sequence import MultimodalSequence
from longllava_trt.runtime.text.tokenizer import TokenStream

DELAY_S = 0.004


class FakeSession:
    """Takes three seconds a call by its own clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def run(self, names: list[str], *, factor: int) -> int:
        self.now += 3.0
        if not names:
            raise ValueError("no names")
        return factor * len(names)

    def run_with_iobinding(self, _binding: object) -> None:
        self.now += 3.0

    def get_providers(self) -> list[str]:
        self.now += 1000.0
        return ["abacus"]


def test_calls_are_timed_and_passed_on() -> None:
    session = FakeSession()
    watch = RuntimeWatch(clock=lambda: session.now)
    watched = WatchedSession(session, watch)
    assert watched.run(["a", "b"], factor=5) == 10
    assert watched.get_providers() == ["abacus"]
    watched.run_with_iobinding(None)
    watched.run_with_iobinding(None)
    assert watch.seconds == 9.0
    watch.restart()
    assert watch.seconds == 0.0
    watched.run(["a"], factor=1)
    assert watch.seconds == 3.0


def test_a_call_that_fails_counts_and_fails() -> None:
    session = FakeSession()
    watch = RuntimeWatch(clock=lambda: session.now)
    with pytest.raises(ValueError, match="no names"):
        WatchedSession(session, watch).run([], factor=1)
    assert watch.seconds == 3.0


def test_overhead_is_what_is_left_of_the_decoding(make_run: Callable[..., AnswerRun]) -> None:
    assert make_run().overhead_us == pytest.approx(1e6 * (0.1 - 0.098) / 20)
    assert make_run(runtime_s=0.0).overhead_us == pytest.approx(5000)
    assert make_run(runtime_s=None).overhead_us is None


def measure(bundle: Path, *, is_watched: bool = True) -> AnswerRun:
    model = LongLLaVA.from_bundle(bundle, RunOptions(num_threads=1))
    watch = RuntimeWatch.over(model) if is_watched else None
    settings = BenchSettings(image_counts=(0,), new_tokens=9, repeats=1)
    (answers,) = measure_answers(model, settings, (), watch=watch, progress=None)
    (run,) = answers.runs
    return run


def test_a_watched_model_answers_the_same(tiny_bundle: Path) -> None:
    plain, watched = (LongLLaVA.from_bundle(tiny_bundle) for _ in range(2))
    watch = RuntimeWatch.over(watched)
    ask = {"query": "What is this?", "max_new_tokens": 9}
    first, second = plain.generate(**ask), watched.generate(**ask)  # type: ignore[arg-type]
    assert first.token_ids == second.token_ids
    assert 0 < watch.seconds < second.prefill_s + second.decode_s


def test_runtime_takes_a_part_of_the_decoding(tiny_bundle: Path) -> None:
    run = measure(tiny_bundle)
    assert run.steps == 8
    assert run.runtime_s is not None
    assert 0 < run.runtime_s < run.timings["decode"]
    assert measure(tiny_bundle, is_watched=False).runtime_s is None


def test_only_calls_of_the_decoding_count(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # on a busy machine the answer's own clock starts later than that of the benchmark: by more than the prefill takes
    slow(monkeypatch, MultimodalSequence, "__init__", seconds=0.5)
    model = LongLLaVA.from_bundle(tiny_bundle, RunOptions(num_threads=1))
    watch = RuntimeWatch.over(model)
    # every look at this clock is one second later: a call takes 1 s
    watch.clock = itertools.count().__next__
    settings = BenchSettings(image_counts=(0,), new_tokens=9, repeats=1)
    (answers,) = measure_answers(model, settings, (), watch=watch, progress=None)
    (run,) = answers.runs
    # the embedding and the decoder, once a token after the first
    assert run.runtime_s == 2 * run.steps


def slow(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, seconds: float = DELAY_S
) -> None:
    call = getattr(owner, name)

    def late(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return call(*args, **kwargs)

    monkeypatch.setattr(owner, name, late)


def test_a_slow_loop_is_the_loops(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, TokenStream, "push")
    overhead = measure(tiny_bundle).overhead_us
    assert overhead is not None
    assert overhead >= 1e6 * DELAY_S


def test_a_slow_runtime_is_the_runtimes(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run", "run_with_iobinding"):
        slow(monkeypatch, onnxruntime.InferenceSession, name)
    run = measure(tiny_bundle)
    assert run.runtime_s is not None
    assert run.runtime_s >= run.steps * DELAY_S
    # all that was added is counted there: what is left is less than one delay a token
    assert run.overhead_us is not None
    assert run.overhead_us < 1e6 * DELAY_S
