"""A bundle with quantised experts equals the reference with what they stand for; what they cost is measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from longllava_trt.core.digests import FileHasher
from longllava_trt.core.errors import InputError
from longllava_trt.core.manifest import Manifest
from longllava_trt.core.parity import ParityReport
from longllava_trt.export.bundle import export_bundle
from longllava_trt.validation import validate
from longllava_trt.validation.parity_case import ParityCase
from longllava_trt.validation.run import run_levels
from tests.export.stored_traces import stored_traces
from tests.validation.conftest import Made, assert_all_passed, rows_of

ROUTED = (1, 3, 5, 7)


@pytest.fixture(scope="module", params=["w8a16", "w4a16"])
def quantised(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    traces: Path,
) -> Made:
    bundle = tmp_path_factory.mktemp(request.param) / "bundle"
    with stored_traces(traces):
        export_bundle(tiny_checkpoint, bundle, moe_quant=request.param)
    return bundle, tiny_checkpoint


@pytest.fixture(scope="module")
def report(quantised: Made) -> ParityReport:
    return validate(*quantised)


def with_file_changed(made: Made, folder: Path, change: Callable[[np.ndarray], None]) -> Made:
    """Change the scales of one layer's down matrices, in a copy whose manifest knows nothing else."""
    bundle = Path(shutil.copytree(made[0], folder / "bundle"))
    record = Manifest.load(bundle).weights["model.layers.3.moe.experts.down_scales"]
    file = bundle / record.file
    change(np.memmap(file, np.float32, mode="r+", offset=record.offset, shape=record.shape))
    manifest = json.loads((bundle / "manifest.json").read_text())
    with FileHasher() as hasher:
        manifest["files"][record.file]["sha256"] = hasher.digest(file)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle, made[1]


@pytest.mark.slow
def test_every_level_keeps_its_tolerance(report: ParityReport) -> None:
    assert report.passed, report.failures
    assert_all_passed(rows_of(report, "op.", "layer.", "stage.", "generation.", "experts.stored."))
    for prefix in ("op.SparseMoE.fast", "op.SparseMoE.onnx", "stage.plain_onnxruntime"):
        assert rows_of(report, prefix)
    assert len(rows_of(report, "experts.stored.")) == len(ROUTED)


@pytest.mark.slow
def test_what_quantisation_changes_is_measured_and_not_judged(
    report: ParityReport, quantised: Made
) -> None:
    rows = rows_of(report, "experts.moves.")
    assert {row.status for row in rows} == {"measured"}
    errors = {row.name: row.relative_rms for row in rows if row.relative_rms is not None}
    moved = [errors[f"experts.moves.decoder.layers.{i}.hidden_states"] for i in range(8)]
    assert moved[0] == 0, "the layer before the first experts"
    is_int8 = Manifest.load(quantised[0]).moe_quant == "w8a16"
    low, high = (1e-3, 3e-2) if is_int8 else (3e-2, 0.5)
    assert all(low < error < high for error in moved[1:])
    assert errors["experts.moves.logits"] > low
    routers = rows_of(report, "experts.moves.decoder.layers.1.router")
    assert "of 65 tokens" in str(routers[0].note)
    assert len([row for row in rows if row.name.endswith(".router")]) == len(ROUTED)
    (tokens,) = rows_of(report, "experts.moves.tokens")
    assert "of 64 greedy tokens are the same" in str(tokens.note)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "problem"), [(1.1, "of its scale away"), (1e-3, "of its scale away")]
)
def test_a_wrong_scale_in_the_bundle_fails(
    quantised: Made, tmp_path: Path, factor: float, problem: str
) -> None:
    def spoil(scales: np.ndarray) -> None:
        scales[2, 17] *= factor

    report = validate(*with_file_changed(quantised, tmp_path, spoil), levels=["experts"])
    (failure,) = report.failures
    assert failure.name == "experts.stored.layers.3"
    assert problem in str(failure.problem)
    assert "experts.2.down_proj" in str(failure.problem)


@pytest.mark.slow
def test_a_reference_with_another_scale_fails_from_its_layer_on(quantised: Made) -> None:
    subject = ParityCase.open(*quantised)
    state = subject.reference.named_tensors()
    name = "model.layers.3.moe.experts.2.down_proj.weight"
    # one row of one expert, by a hundredth
    state[name] = state[name].clone()
    state[name][17] *= 1.01
    wrong = type(subject.reference).from_tensors(subject.reference.config, state)
    report = run_levels(
        replace(subject, reference=wrong), ["op", "layer"], kernels=["onnx", "fast"]
    )
    assert_all_passed(rows_of(report, *(f"layer.fast.decoder.layers.{i}." for i in range(3))))
    for kernels in ("fast", "onnx"):
        for layer in range(3, 8):
            (row,) = rows_of(report, f"layer.{kernels}.decoder.layers.{layer}.hidden_states")
            assert row.status == "failed", row.line()


@pytest.mark.slow
def test_the_unquantised_reference_is_not_what_it_equals(quantised: Made) -> None:
    subject = ParityCase.open(*quantised)
    assert subject.original is not None
    report = run_levels(replace(subject, reference=subject.original), ["op"], kernels=["fast"])
    moe = rows_of(report, "op.SparseMoE")
    assert {row.status for row in moe} == {"failed"}
    assert_all_passed([row for row in rows_of(report, "op.") if row not in moe])


@pytest.mark.slow
def test_the_twin_shares_what_is_not_quantised(quantised: Made) -> None:
    subject = ParityCase.open(*quantised)
    assert subject.original is not None
    ours, theirs = subject.reference.named_tensors(), subject.original.named_tensors()
    differing = {n for n in ours if ours[n].data_ptr() != theirs[n].data_ptr()}
    assert differing == {n for n in ours if any(f".{i}.moe.experts." in n for i in ROUTED)}
    assert not any(torch.equal(ours[n], theirs[n]) for n in differing)


def test_a_bundle_without_quantised_experts_has_no_such_level(
    tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    with pytest.raises(InputError, match="has no quantised experts to compare"):
        validate(tiny_bundle, tiny_checkpoint, levels=["experts"])
