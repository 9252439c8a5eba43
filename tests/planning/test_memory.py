"""Predicted bytes, against what is allocated and what the exported graph keeps alive."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from longllava_trt.core.errors import InputError
from longllava_trt.core.manifest import Manifest
from longllava_trt.core.weight_formats import MoeQuant
from longllava_trt.export.bundle import export_bundle
from longllava_trt.inspection import count_parameters
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.models.parameters import parameter_shapes
from longllava_trt.planning.memory import (
    count_weights,
    decoder_activation_bytes,
    kv_bytes_per_token,
    recurrent_bytes,
)
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from longllava_trt.runtime.backends.ort.decoder import Decoder
from longllava_trt.runtime.backends.ort.session import OnnxSession
from tests.export.stored_traces import stored_traces, traces_folder

CHUNK = 1024
_ITEMSIZE: dict[int, int] = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.INT64: 8,
    onnx.TensorProto.INT32: 4,
    onnx.TensorProto.BOOL: 1,
}
_VIEWS = {"Identity", "Reshape", "Squeeze", "Unsqueeze"}
_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


@pytest.fixture(scope="module")
def mini_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # what is read here is graph and manifest
    folder = tmp_path_factory.mktemp("mini")
    write_checkpoint(folder / "model", preset="mini", sparse=True)
    with stored_traces(traces_folder(tmp_path_factory)):
        export_bundle(folder / "model", folder / "bundle", stages=["decoder"])
    return folder / "bundle"


@pytest.mark.parametrize("length", [1, 77])
def test_state_bytes_are_those_the_runtime_carries(tiny_bundle: Path, length: int) -> None:
    config = PRESETS["tiny"].decoder
    decoder = Decoder(OnnxSession(tiny_bundle, Manifest.load(tiny_bundle), "decoder"))
    state = decoder.new_state(capacity=100)
    decoder.step(np.zeros((1, length, config.hidden_size), np.float32), state)
    carried = sum(array.nbytes for array in state.state_dict(copy=True).values())

    predicted = length * kv_bytes_per_token(config, dtype="float32")
    predicted += recurrent_bytes(config, dtype="float32")

    assert predicted == carried


def test_published_sizes_are_those_of_the_specification() -> None:
    decoder = PRESETS["9b"].decoder

    assert kv_bytes_per_token(decoder, dtype="bfloat16") == 16 * 1024
    assert recurrent_bytes(decoder, dtype="bfloat16") == 28 * 8192 * (16 * 4 + 3 * 2)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_weights_in_the_dtype_are_all_parameters(preset: str) -> None:
    config = PRESETS[preset]
    total = count_parameters(parameter_shapes(config), config.decoder).total

    assert count_weights(config, dtype="bfloat16").total == 2 * total


@pytest.mark.parametrize(("quant", "gigabytes"), [("w8a16", 58.7), ("w4a16", 37.6)])
def test_quantised_experts_of_the_53b_shrink_as_expected(quant: MoeQuant, gigabytes: float) -> None:
    weights = count_weights(PRESETS["53b"], dtype="bfloat16", moe_quant=quant)

    assert round(weights.total / 1e9, 1) == gigabytes


def test_unknown_dtype_and_format_are_refused() -> None:
    with pytest.raises(InputError, match="dtype must be one of float32, float16, bfloat16"):
        count_weights(PRESETS["tiny"], dtype="int8")
    with pytest.raises(InputError, match="moe_quant must be one of none, w8a16, w4a16"):
        count_weights(PRESETS["tiny"], dtype="float16", moe_quant="fp8")  # type: ignore[arg-type]


@pytest.mark.slow
def test_decoder_weights_of_mini_are_those_its_graph_reads(mini_bundle: Path) -> None:
    weights = count_weights(PRESETS["mini"], dtype="float32")
    read = sum(record.nbytes for record in Manifest.load(mini_bundle).weights.values())

    assert weights.decoder + weights.experts == read


@pytest.mark.slow
def test_decoder_activations_of_mini_are_within_a_tenth_of_what_its_graph_keeps_alive(
    mini_bundle: Path,
) -> None:
    predicted = decoder_activation_bytes(PRESETS["mini"].decoder, dtype="float32", chunk=CHUNK)

    alive = _peak_alive(onnx.load(mini_bundle / "decoder.onnx", load_external_data=False).graph)

    assert predicted == pytest.approx(alive, rel=0.1)


def _peak_alive(graph: onnx.GraphProto) -> int:
    """Run through the graph, freeing every value after its last use; views take nothing."""
    outputs = {o.name for o in graph.output}
    still = {i.name for i in [*graph.initializer, *graph.input]}
    types = {v.name: v.type.tensor_type for v in [*graph.value_info, *graph.output]}
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    alive: dict[str, int] = {}
    peak = 0
    for i, node in enumerate(graph.node):
        if set(node.input) <= still | {""} and "seq_len" not in str(
            [types.get(o) for o in node.output]
        ):
            still |= set(node.output)
            continue
        for name in node.output:
            is_free = name in outputs or node.op_type in _VIEWS or name not in types
            alive[name] = 0 if is_free else _nbytes(types[name])
        peak = max(peak, sum(alive.values()))
        for name in {*node.input, *node.output}:
            if last.get(name, i) <= i:
                alive.pop(name, None)
    return peak


def _nbytes(tensor: onnx.TypeProto.Tensor) -> int:
    sizes = [
        d.dim_value or _size(ast.parse(d.dim_param, mode="eval").body) for d in tensor.shape.dim
    ]
    return math.prod(sizes) * _ITEMSIZE[tensor.elem_type]


def _size(expression: ast.expr) -> int:
    if isinstance(expression, ast.BinOp):
        combine = _OPERATIONS[type(expression.op)]
        return combine(_size(expression.left), _size(expression.right))
    if isinstance(expression, ast.Constant):
        assert isinstance(expression.value, int)
        return expression.value
    assert isinstance(expression, ast.Name)
    return {"batch": 1, "seq_len": CHUNK, "capacity": CHUNK}[expression.id]
