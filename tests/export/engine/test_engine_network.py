"""TensorRT's network computes the same numbers as the bundle's graph, after every change to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from longllava_trt.core.manifest import Manifest
from longllava_trt.export.engine import network
from longllava_trt.export.engine.log import make_logger
from longllava_trt.export.engine.network import network_layers
from longllava_trt.export.engine.profiles import EngineLimits
from longllava_trt.export.engine.stage import AuditedStage, stage_network
from longllava_trt.plugins_trt.registry import TensorRT
from tests.export.engine.network_interpreter import compute
from tests.export.engine.test_engine_graph import decoder_feed, run
from tests.export.engine.test_engine_weights import assemble

pytestmark = [pytest.mark.trt, pytest.mark.usefixtures("plugins")]

LIMITS = EngineLimits(max_context=11, chunk=5, vision_batch=3)


def parse(tensorrt: TensorRT, bundle: Path, stage: str) -> AuditedStage:
    return stage_network(tensorrt, bundle, stage, log=make_logger(tensorrt), limits=LIMITS)


def evaluate(
    tensorrt: TensorRT, ready: AuditedStage, bundle: Path, feed: dict[str, Any]
) -> dict[str, np.ndarray]:
    weights = {weight.name: assemble(bundle, weight) for weight in ready.weights}
    return compute(tensorrt.module, ready.parsed, feed | weights)


def stage_feed(bundle: Path, stage: str) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    if stage == "embed":
        return {"input_ids": rng.integers(0, 512, (1, 5))}
    (tensor,) = Manifest.load(bundle).stage(stage).spec.inputs
    shape = [2 if isinstance(dim, str) else dim for dim in tensor.shape]
    return {tensor.name: rng.standard_normal(shape).astype(np.float32)}


def compare(bundle: Path, stage: str, feed: dict[str, Any], got: dict[str, np.ndarray]) -> None:
    model = onnx.load(bundle / f"{stage}.onnx", load_external_data=False)
    want = run(model, bundle, feed)
    for value, one in zip(model.graph.output, want, strict=True):
        np.testing.assert_allclose(got[value.name], one, rtol=1e-4, atol=1e-5, err_msg=value.name)


@pytest.mark.parametrize("stage", ["vision", "projector", "embed"])
def test_a_stage_is_what_its_graph_is(stage: str, tensorrt: TensorRT, tiny_bundle: Path) -> None:
    feed = stage_feed(tiny_bundle, stage)
    ready = parse(tensorrt, tiny_bundle, stage)
    compare(tiny_bundle, stage, feed, evaluate(tensorrt, ready, tiny_bundle, feed))


@pytest.fixture
def decoder(tensorrt: TensorRT, tiny_bundle: Path) -> AuditedStage:
    return parse(tensorrt, tiny_bundle, "decoder")


@pytest.mark.parametrize(("seq_len", "past"), [(5, 0), (3, 4), (1, 10)])
def test_the_decoder_is_what_its_graph_is(
    seq_len: int, past: int, decoder: AuditedStage, tensorrt: TensorRT, tiny_bundle: Path
) -> None:
    feed = decoder_feed(tiny_bundle, seq_len=seq_len, capacity=11, past=past)
    compare(tiny_bundle, "decoder", feed, evaluate(tensorrt, decoder, tiny_bundle, feed))


def test_a_square_weight_the_wrong_way_round_is_seen(
    decoder: AuditedStage, tensorrt: TensorRT, tiny_bundle: Path
) -> None:
    """TensorRT would not notice: all shapes agree."""
    trt = tensorrt.module
    for layer in network_layers(decoder.parsed.network):
        if layer.type == trt.LayerType.MATRIX_MULTIPLY and layer.get_output(0).name == "linear_27":
            layer.__class__ = trt.IMatrixMultiplyLayer
            layer.op1 = trt.MatrixOperation.NONE
    feed = decoder_feed(tiny_bundle, seq_len=3, capacity=11, past=4)
    got = evaluate(tensorrt, decoder, tiny_bundle, feed)
    with pytest.raises(AssertionError, match="logits"):
        compare(tiny_bundle, "decoder", feed, got)


def test_a_network_without_the_edit_computes_the_same(
    tensorrt: TensorRT, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network as it is parsed computes the same: the interpreter does not know which edit to expect."""
    monkeypatch.setattr(network, "_multiply_by_weights_as_stored", lambda *_: None)
    ready = parse(tensorrt, tiny_bundle, "decoder")
    feed = decoder_feed(tiny_bundle, seq_len=3, capacity=11, past=4)
    compare(tiny_bundle, "decoder", feed, evaluate(tensorrt, ready, tiny_bundle, feed))
