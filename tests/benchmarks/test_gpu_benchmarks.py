"""The GPU benchmarks on a CPU: every step's code runs on tiny sizes, and however a step ends, its rows are kept."""

from __future__ import annotations

import importlib.util
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import dummy_weights, prepare, run
from benchmarks.gpu.context import ROWS_FILE, BenchContext, read_rows
from benchmarks.gpu.images import images
from benchmarks.gpu.oracles import (
    conv_oracle,
    mamba_oracle,
    moe_oracle,
    relative_rms,
    scan_oracle,
)
from benchmarks.gpu.report import markdown
from benchmarks.gpu.roofline import Ceilings, attention_work, conv_work, moe_work, scan_work
from benchmarks.gpu.scale import scale
from benchmarks.gpu.steps import STEPS, Measure, Step, load
from benchmarks.gpu.wheels import use_wheels

ROOT = Path(__file__).parents[2]
TRITON = importlib.util.find_spec("triton") is not None


def dry_context(tmp_path: Path) -> BenchContext:
    return BenchContext(out=tmp_path, is_dry=True)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_step_can_be_imported(step: Step) -> None:
    if not TRITON:
        pytest.skip("a step's imports are unproven: install longllava-trt[plugins]")
    assert callable(load(step))
    assert step.seconds <= 400


@pytest.mark.slow
@pytest.mark.skipif(
    not TRITON, reason="the GPU benchmarks' numbers are unproven: install longllava-trt[plugins]"
)
def test_a_dry_run_leaves_right_numbers_in_every_row(tmp_path: Path) -> None:
    names = [
        "gpu-info",
        "plugin",
        "plugin-ptx",
        "answers",
        "decoder-9b",
        "decoder-53b",
        "attention",
        "scan",
        "moe",
        "conv",
        "alternatives",
        "baselines",
        "tune-scan",
        "tune-moe",
        "stages",
        "scale",
        "images",
    ]
    code = run.main(["--out", str(tmp_path), "--dry-run", "--only", *names])
    document = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(document["steps"]) == [step.name for step in STEPS if step.name in names]
    for name, step in document["steps"].items():
        assert step["status"] == "done", (name, step["log"])
        assert step["rows"], name
        assert [row for row in step["rows"] if row.get("ok") is False] == []
    names = ["scan", "moe", "conv", "attention"]
    errors = [row["error"] for name in names for row in rows_of(document, name)]
    assert len(errors) == 2 + 6 + 4 + 3
    assert max(errors) < 2e-6
    assert code == 0
    assert "| L 5 channels last | ✓ |" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_images_are_measured_from_end_to_end(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = [*images(BenchContext(out=tmp_path, is_dry=True, bundle=tiny_bundle))]
    cases = ["3 images", "5 images", "5 images, vision and decoder in turn"]
    assert [row["case"] for row in rows] == [f"{tiny_bundle.name}, {case}" for case in cases]
    assert [row["images"] for row in rows] == [3, 5, 5]
    for row in rows:
        assert row["ok"], row
        assert all(math.isfinite(value) for name, value in row.items() if name != "case")
        # 144 of each image, and its tags
        assert 144 < row["positions"] / row["images"] < 160
        stages = [row[f"{name}_s"] for name in ("vision", "projector", "embed", "prefill")]
        assert min(stages) > 0
        # one after another: of the whole, and not all of it
        assert sum(stages) < row["ingest_s"] < 60
        assert row["vision_hidden"] < 0 < row["decode_image_s"]
        assert row["ms_per_image"] == pytest.approx(1e3 * row["ingest_s"] / row["images"])
        assert 0 < row["first_token_s"] < 60
        assert row["decode_tokens_per_s"] > 0
        assert row["host_growth_mib"] >= 0


@pytest.mark.parametrize("step", [scale, images], ids=["scale", "images"])
def test_without_engines_of_full_size_a_step_says_so(step: Measure, tmp_path: Path) -> None:
    (tmp_path / "9b" / "engines").mkdir(parents=True)
    for given in (None, tmp_path, tmp_path / "absent"):
        (row,) = step(BenchContext(out=tmp_path, scale=given))
        assert row["case"].startswith("not run: name a folder")


@pytest.mark.parametrize("engines", [False, True], ids=["kernels", "engines"])
def test_a_bundle_is_prepared_without_weights_and_graphs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    engines: bool,
) -> None:
    def pretend(module: str, *arguments: Any) -> None:
        """Write what the commands do, as far as names go."""
        kind = arguments[0] if module == "longllava_trt" else module
        written = {
            "longllava_trt.plugins_trt.library.build": lambda: [arguments[-1]],
            "synth": lambda: [arguments[1] / "config.json"],
            "export": lambda: [arguments[2] / n for n in ("config.json", *left_out)],
            "build": lambda: [arguments[1] / "engines" / "sm80" / "engine.json"],
        }[kind]()
        for path in written:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(2**20))

    left_out = ("decoder.onnx", "weights/model.safetensors", "weights/vision/model.safetensors")
    asked: list[Path] = []
    monkeypatch.setattr(prepare, "_python", pretend)
    monkeypatch.setattr(prepare, "write_expected", asked.append)
    prepare.prepare(tmp_path, presets=["9b"], engines=engines)
    kept = {str(p.relative_to(tmp_path)) for p in (tmp_path / "scale").rglob("*") if p.is_file()}
    assert kept == {"scale/9b/config.json", *["scale/9b/engines/sm80/engine.json"] * engines}
    assert f"scale/9b: {1.0 + engines} MiB" in capsys.readouterr().out
    assert asked == [tmp_path / "needle"]
    libraries = {path.name for path in tmp_path.glob("*.so")}
    assert libraries == {"liblongllava_plugins.so", "liblongllava_plugins_sm80.so"}


def test_the_smallest_model_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"53b": 2, "9b": 1}
    for name in (*sizes, "no engines"):
        (tmp_path / name / "engines" / "sm80").mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text("{}")
    for name in sizes:
        (tmp_path / name / "engines" / "sm80" / "engine.json").write_text("{}")
    sizes["no engines"] = 3
    monkeypatch.setattr(dummy_weights, "_weight_bytes", lambda bundle: sizes[bundle.name])
    found = dummy_weights.bundles_without_weights(tmp_path, engines=True)
    assert [bundle.name for bundle in found] == ["9b", "53b"]
    found = dummy_weights.bundles_without_weights(tmp_path)
    assert [bundle.name for bundle in found] == ["9b", "53b", "no engines"]
    assert dummy_weights.bundles_without_weights(None) == []


def rows_of(document: Any, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["steps"][name]["rows"]
    return found


CHILD = """
import os, sys, time
from pathlib import Path
rows = Path(sys.argv[1]) / "rows.jsonl"
with rows.open("a") as file:
    file.write('{"step": "gpu-info", "case": "before"}\\n')
{end}
"""
ENDINGS = {
    "raises": ("raise RuntimeError('no luck')", "failed"),
    "crashes": ("import signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed: signal SIGSEGV"),
    "hangs": ("time.sleep(60)", "cut off: time limit"),
    "ends": ("", "done"),
}


@pytest.mark.parametrize(("end", "status"), ENDINGS.values(), ids=ENDINGS)
def test_rows_survive_however_a_step_ends(end: str, status: str, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.replace("{end}", end), str(tmp_path)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    document = {
        "date": "",
        "command": "",
        "steps": {"gpu-info": {"about": "", "status": "running"}},
    }
    results = run.Results(dry_context(tmp_path), document)
    found = run.wait_for(child, results, until=time.monotonic() + 3)
    run.end(child)
    results.write()
    assert found == status
    assert child.poll() is not None
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert written["steps"]["gpu-info"]["rows"] == [{"case": "before"}]


def test_a_spent_budget_begins_nothing(tmp_path: Path) -> None:
    code = run.main(["--out", str(tmp_path), "--dry-run", "--budget", "1", "--only", "gpu-info"])
    step = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["steps"]["gpu-info"]
    assert step["status"] == "not begun: the budget is spent"
    assert code == 1


def test_a_run_that_is_ended_leaves_what_it_had(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--out", str(tmp_path), "--dry-run"]
    running = subprocess.Popen(
        [*command, "--only", "gpu-info"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 30
    while not read_rows(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=10) == 143
    document = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert rows_of(document, "gpu-info")[0]["case"] == "python"


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    (tmp_path / ROWS_FILE).write_text('{"step": "scan", "case": 1}\n{"step": "sc')
    assert read_rows(tmp_path) == [{"step": "scan", "case": 1}]


def test_a_context_is_passed_on_whole(tmp_path: Path) -> None:
    given = BenchContext(out=tmp_path, is_dry=True, wheels=tmp_path / "w")
    assert BenchContext.from_json(json.dumps(given.to_json())) == given


def test_rooflines_are_what_paper_says() -> None:
    ceilings = Ceilings(bytes_per_s=2e12, flops_per_s=300e12, exps_per_s=2e12)
    floor, bound = scan_work(4096, 8192, 16, itemsize=2).floor(ceilings)
    assert (bound, round(floor, 3)) == ("exponentials", round(4096 * 8192 * 18 / 2e9, 3))
    prefill = moe_work(
        4096,
        4096,
        14336,
        num_experts=16,
        top_k=2,
        touched=16,
        weight_bits=16,
        itemsize=2,
    )
    assert prefill.floor(ceilings)[1] == "flops"
    assert prefill.flops == 4096 * 2 * 2 * 3 * 4096 * 14336
    decode = [
        moe_work(
            1, 4096, 14336, num_experts=16, top_k=2, touched=2, weight_bits=bits, itemsize=2
        ).bytes_
        for bits in (16, 8, 4)
    ]
    # two experts of 176.2 million weights, their scales beside them
    assert [round(b / 1e6) for b in decode] == [705, 353, 187]
    step = attention_work(1, 1, 100_000, 32, 8, 128, itemsize=2)
    assert round(step.bytes_ / 1e6) == 410
    chunk = attention_work(1, 4096, 100_000, 32, 8, 128, itemsize=2)
    assert round(chunk.flops / 1e12, 1) == round(4 * 4096 * 102_048.5 * 4096 / 1e12, 1)
    conv = conv_work(4096, 8192, 4, itemsize=2)
    assert round(conv.bytes_ / 1e6) == 134


def test_oracles_agree_with_the_twins() -> None:
    from benchmarks.gpu.inputs import conv_inputs, mamba_inputs, moe_inputs, scan_inputs
    from longllava_trt.plugins_trt.kernels.naive import (
        naive_causal_conv,
        naive_mamba_scan,
        naive_selective_scan,
    )
    from longllava_trt.plugins_trt.kernels.sparse_moe_naive import naive_sparse_moe

    torch.manual_seed(0)
    options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    scan = scan_inputs(9, 7, 16, **options)
    for actual, expected in zip(naive_selective_scan(**scan), scan_oracle(scan), strict=True):
        assert relative_rms(actual, expected) < 2e-6
    mamba = mamba_inputs(9, 7, 16, 5, **options)
    found = zip(naive_mamba_scan(**mamba, eps=1e-6), mamba_oracle(mamba, eps=1e-6), strict=True)
    for actual, expected in found:
        assert relative_rms(actual, expected) < 2e-6
    conv = conv_inputs(9, 7, 4, channels_last=True, **options)
    for actual, expected in zip(naive_causal_conv(**conv), conv_oracle(conv), strict=True):
        assert relative_rms(actual, expected) < 2e-6
    for weights in ("bf16", "int8", "int4"):
        moe = moe_inputs(9, 256, 32, num_experts=4, weights=weights, **options)
        actual = naive_sparse_moe(**moe, top_k=2)
        assert relative_rms(actual, moe_oracle(moe, top_k=2)) < 2e-6
        assert 0.05 < float(actual.std()) < 5, "products keep about the size of x"
        assert relative_rms(actual * 1.01, moe_oracle(moe, top_k=2)) > 5e-3


def test_what_is_not_finite_is_infinitely_wrong() -> None:
    one = torch.ones(3, dtype=torch.float64)
    assert relative_rms(one * math.nan, one) == math.inf


def test_a_table_has_every_column() -> None:
    rows = [{"case": "a", "ok": True}, {"case": "b|c", "ms": 1234.5}]
    document = {
        "date": "today",
        "command": "x",
        "steps": {"scan": {"about": "?", "status": "done", "rows": rows}},
    }
    assert "| b\\|c |  | 1,234 |" in markdown(document)


def test_wheels_are_unpacked_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tarfile
    import zipfile

    monkeypatch.setattr(sys, "path", list(sys.path))
    with zipfile.ZipFile(tmp_path / "a-1-py3-none-any.whl", "w") as archive:
        archive.writestr("probe_of_wheels_a/__init__.py", "x = 1")
    source = tmp_path / "b-1" / "probe_of_wheels_b"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("x = 2")
    (tmp_path / "b-1" / "setup.py").write_text("")
    with tarfile.open(tmp_path / "b-1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "b-1", "b-1")
    site = use_wheels(tmp_path)
    assert {path.name for path in site.iterdir()} == {"probe_of_wheels_a", "probe_of_wheels_b"}
    assert importlib.import_module("probe_of_wheels_b").x == 2
