"""Every comparison fails when one side is wrong, at the rows where it should and not before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from longllava_trt.core.parity import ParityReport
from longllava_trt.reference.cache import MambaState
from longllava_trt.reference.connector import pool_patches
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.runtime.backends.ort.decoder import DecoderState
from longllava_trt.validation.parity_case import ParityCase
from longllava_trt.validation.run import run_levels
from tests.reference.test_against_transformers import (
    NoSkip,
    RenormalisedRouter,
    ShiftedConv,
    WithRotaryPositions,
)
from tests.validation.conftest import assert_all_passed, rows_of

pytestmark = pytest.mark.parametrize("made", ["tiny"], indirect=True)

FAR_BEYOND = 100
"""How many times its limit a wrong result must exceed."""


def assert_all_failed(report: ParityReport, *prefixes: str) -> None:
    """Assert that each prefix has rows, and that all of them are far off."""
    for prefix in prefixes:
        rows = rows_of(report, prefix)
        assert rows, f"no row {prefix}"
        for row in rows:
            assert row.status == "failed", row.line()
            if row.relative_rms is not None and row.tolerance is not None:
                assert row.relative_rms > FAR_BEYOND * row.tolerance.relative_rms, row.line()


def validate_wrong(
    subject: ParityCase, spoil: Callable[[LongLLaVA], None], *levels: str
) -> ParityReport:
    """Validate against a spoilt copy of the reference."""
    wrong = copy.deepcopy(subject.reference)
    spoil(wrong)
    return run_levels(
        replace(subject, reference=wrong), levels, kernels=["onnx"], max_new_tokens=16
    )


@pytest.mark.parametrize(
    ("ops", "operator_row", "first_layer"),
    [
        (NoSkip, "op.SelectiveScan.onnx.len65.y", 0),
        (ShiftedConv, "op.CausalConvWithState.len65.output", 0),
        (RenormalisedRouter, "op.SparseMoE.onnx.len1.y", 1),
        (WithRotaryPositions, "op.Attention.len3.y", 4),
    ],
    ids=["no-skip", "shifted-conv", "renormalised-router", "rotary-positions"],
)
def test_a_wrong_operator_fails_at_every_level(
    subject: ParityCase, ops: type, operator_row: str, first_layer: int
) -> None:
    def spoil(model: LongLLaVA) -> None:
        model.ops = ops()

    report = validate_wrong(subject, spoil, "op", "layer", "stage", "generation")
    assert_all_failed(
        report,
        operator_row,
        *(f"layer.onnx.decoder.layers.{i}." for i in range(first_layer, 8)),
        "stage.onnx.decoder.steps.logits",
        "stage.plain_onnxruntime.decoder.whole.logits",
        "generation.onnx.",
    )
    family = operator_row.split(".")[1]
    others = [row for row in rows_of(report, "op.") if row.name.split(".")[1] != family]
    assert_all_passed(others)
    for layer in range(first_layer):
        assert_all_passed(rows_of(report, f"layer.onnx.decoder.layers.{layer}."))


def test_a_reference_that_forgets_its_ssm_state_fails_at_the_layers(subject: ParityCase) -> None:
    def spoil(model: LongLLaVA) -> None:
        decode = model.decode

        def forgetful(inputs_embeds, cache, **options):  # type: ignore[no-untyped-def]
            forgotten = tuple(
                s._replace(recurrent_state=torch.zeros_like(s.recurrent_state))
                if isinstance(s, MambaState)
                else s
                for s in cache
            )
            return decode(inputs_embeds, forgotten, **options)

        model.decode = forgetful  # type: ignore[method-assign]

    report = validate_wrong(subject, spoil, "layer")
    assert_all_failed(
        report,
        "layer.onnx.decoder.layers.0.",
        "layer.onnx.decoder.present.0.recurrent_state",
    )
    # the first convolution sees embeddings only
    assert_all_passed(rows_of(report, "layer.onnx.decoder.present.0.conv_state"))


def test_a_runtime_that_forgets_its_ssm_state_fails_at_the_stage(
    subject: ParityCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = DecoderState.advance

    def forgetful(self: DecoderState, seq_len: int) -> None:
        advance(self, seq_len)
        if self.past_len < 97:
            for name, buffer in self.current.items():
                if name.endswith("recurrent_state"):
                    buffer.array[...] = 0

    monkeypatch.setattr(DecoderState, "advance", forgetful)
    report = run_levels(subject, ["stage"], kernels=["onnx"])
    assert_all_failed(
        report,
        "stage.onnx.decoder.steps.",
        "stage.onnx.decoder.chunks==whole.",
        "stage.onnx.decoder.steps==whole.",
    )
    assert_all_passed(rows_of(report, "stage.onnx.decoder.whole."))


def test_pooling_after_the_projector_fails_at_the_projector(subject: ParityCase) -> None:
    def spoil(model: LongLLaVA) -> None:
        side = model.config.require_vision().patches_per_side

        def project(image_features: torch.Tensor) -> torch.Tensor:
            tokens = model.projector(image_features)
            return pool_patches(tokens, patches_per_side=side)

        model.project = project  # type: ignore[method-assign]

    report = validate_wrong(subject, spoil, "stage", "generation")
    assert_all_failed(report, "stage.onnx.projector.", "generation.onnx.logits")
    assert_all_passed(rows_of(report, "stage.onnx.vision.", "stage.onnx.decoder."))


def test_the_last_vision_layer_fails_at_the_vision_stage(subject: ParityCase) -> None:
    def spoil(model: LongLLaVA) -> None:
        (last,) = model.vision.feature_states
        model.vision.feature_states = (last + 1,)

    report = validate_wrong(subject, spoil, "stage", "generation")
    assert_all_failed(report, "stage.onnx.vision.", "generation.onnx.logits")
    assert_all_passed(rows_of(report, "stage.onnx.projector.", "stage.onnx.decoder."))


def test_two_swapped_experts_fail_from_their_layer_on(subject: ParityCase) -> None:
    def spoil(model: LongLLaVA) -> None:
        experts = model.get_submodule("layers.3.feed_forward.experts")
        assert isinstance(experts, torch.nn.ModuleList)
        experts[0], experts[1] = experts[1], experts[0]

    report = validate_wrong(subject, spoil, "layer", "stage", "generation")
    assert_all_passed(rows_of(report, *(f"layer.onnx.decoder.layers.{i}." for i in range(3))))
    assert_all_failed(
        report,
        *(f"layer.onnx.decoder.layers.{i}." for i in range(3, 8)),
        "stage.onnx.decoder.steps.logits",
        "generation.onnx.logits",
    )
