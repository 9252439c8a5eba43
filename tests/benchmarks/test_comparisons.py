"""The comparisons on a CPU, small: they run, agree, print a table and JSON, and notice what does not agree."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import decoder, mobius, pipeline, selective_scan
from benchmarks.machine_limits import MachineLimits, product_shapes
from examples.needle.evaluate import Said
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.planning.memory import count_weights
from tests.export.stored_traces import stored_traces, traces_folder

Main = Callable[[Sequence[str]], int]
SMALL = {
    "pipeline": (pipeline.main, "--preset tiny --images 2 --repeats 1 --threads 1"),
    "decoder": (
        decoder.main,
        "--preset tiny --dtype bfloat16 --prompt 5 --steps 3 --repeats 1 --threads 1 --without compiled",
    ),
    "scan": (selective_scan.main, "--seq-len 3 --d-inner 32 --repeats 1 --threads 1"),
}


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """Keep the number of threads that the other tests run with."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read little: rates mean nothing here."""
    monkeypatch.setattr("benchmarks.machine_limits._READ_BYTES", 2**20)


def run(main: Main, options: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """Run a script; returns its exit status and its last line."""
    status = main(options.split())
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_comparison_agrees(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with stored_traces(traces_folder(tmp_path_factory)):
        status, found = run(*SMALL[name], capsys)
    assert status == 0
    assert found["threads"] == 1


def test_the_pipeline_notices_another_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = dict.fromkeys(pipeline.STAGES, 0.0)
    ways = {
        name: pipeline.Contestant(lambda token=token: (Said("", (token,), 1), stages))  # type: ignore[misc]
        for name, token in (("ours", 1), ("reference", 2))
    }
    monkeypatch.setattr(pipeline, "contestants", lambda *args: ways)
    status, found = run(pipeline.main, "--images 1 --repeats 1", capsys)
    assert (status, found["same_answers"]) == (1, False)


@pytest.mark.parametrize(
    ("off", "status"),
    [("ours", 1), ("compiled", 1), ("bfloat16", 0), ("nobody", 0)],
)
def test_the_decoder_notices_other_logits_of_float32(
    off: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def way(name: str) -> decoder.Contestant:
        logits = np.array([1.0, 2.0 + 0.01 * (name == off)], np.float32)
        return decoder.Contestant(lambda: logits, lambda index: logits)

    monkeypatch.setattr(decoder, "prepare", lambda *args: {n: way(n) for n in decoder.ROWS})
    options = "--preset tiny --prompt 4 --steps 2 --repeats 1 --threads 1"
    assert run(decoder.main, options, capsys)[0] == status


def test_the_decoder_says_why_a_compilation_failed() -> None:
    def fail() -> Any:
        raise RuntimeError("no compiler\nand much more")

    ways = {"compiled": decoder.Contestant(fail, lambda index: fail())}
    assert decoder.warm_up(ways, 2) == {"compiled": "RuntimeError: no compiler"}
    assert not ways
    with pytest.raises(RuntimeError, match="no compiler"):
        decoder.warm_up({"ours": decoder.Contestant(fail, lambda index: fail())}, 2)


def test_the_limit_of_a_token_is_reading_the_weights_it_touches() -> None:
    limits = MachineLimits(product_shapes(PRESETS["tiny"].decoder, 4), threads=1)
    limits.bytes_per_s, limits.flops_per_s = 1e9, 1e9
    whole, half = (
        decoder.limit_rates(PRESETS["tiny"], limits, prompt=4, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    touched = count_weights(PRESETS["tiny"], dtype="float32").read_per_token
    assert whole["decode"] == pytest.approx(1e9 / touched)
    assert half == pytest.approx({"prefill": whole["prefill"], "decode": 2 * whole["decode"]})


@pytest.mark.skipif(
    importlib.util.find_spec("mobius") is not None,
    reason="what is said without mobius is unproven: it is installed",
)
def test_mobius_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert mobius.main([]) == 2
    assert "pip install" in capsys.readouterr().err
