"""The library in TensorRT: its creators, a network of one node of each form, and what bad nodes are told.

Engines are built for an A100 that is not there; they are not run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.plugins_trt.library.build import PluginLibrary
from longllava_trt.plugins_trt.plugin_formats import FORMS, parse_axis

pytestmark = [
    pytest.mark.trt,
    pytest.mark.skipif(
        not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx")),
        reason="plugins are not loaded into TensorRT: install longllava-trt[trt-rtx]",
    ),
]

_SCRIPT = Path(__file__).parents[1] / "data" / "build_one_node.py"
_SIZES = {"d_inner": 64, "d_state": 16, "d_conv": 4, "dt_rank": 4, "dt_b_c": 36}
_SIZES |= {"heads": 8, "kv_heads": 2, "head_dim": 128, "capacity": 300}
_SIZES |= {"hidden": 64, "intermediate": 128, "num_experts": 4}
_ATTRIBUTES: dict[tuple[str, str], dict[str, Any]] = {
    ("SelectiveScan", ""): {},
    ("SparseMoE", "none"): {"top_k": 2},
    ("SparseMoE", "int8"): {"top_k": 2, "weight_format": "int8"},
    ("SparseMoE", "int4"): {"top_k": 2, "weight_format": "int4"},
    ("CausalConvWithState", ""): {"activation": "silu"},
    ("CachedAttention", ""): {},
    ("MambaScan", ""): {"eps": 1e-6},
}
# the channels-last convolution is out of its parser's reach: it hands on what ONNX has alone
_DTYPES = {"float32": "fp32", "int8": "int8", "packed": "int8", "int32": "int32"}


class _Builder:
    """Talks to `build_one_node.py`."""

    def __init__(self, library: Path) -> None:
        command = [sys.executable, str(_SCRIPT), str(library)]
        root = str(Path(__file__).parents[3])
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": root},
        )
        self.creators = self._read()

    def __call__(self, node: dict[str, Any]) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(node) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def builder(plugin_library: PluginLibrary) -> Iterator[_Builder]:
    running = _Builder(plugin_library.path)
    yield running
    running.close()


def _node(op_type: str, variant: str = "", dtype: str = "bf16", **attributes: Any) -> Any:
    form = next(f for f in FORMS if (f.op_type, f.variant) == (op_type, variant))
    inputs, outputs = (
        {v.name: [_DTYPES.get(v.dtype, dtype), list(map(_dim, v.axes))] for v in values}
        for values in (form.inputs, form.outputs)
    )
    return {
        "op_type": op_type,
        "domain": "" if op_type == "CausalConvWithState" else "longllava",
        "attributes": _ATTRIBUTES[op_type, variant] | attributes,
        "inputs": inputs,
        "outputs": outputs,
    }


def _dim(axis: str | int) -> int | str:
    parsed = parse_axis(axis)
    if parsed.symbol is None:
        return parsed.offset
    if parsed.symbol not in _SIZES:
        return parsed.symbol
    return -(-parsed.scale * _SIZES[parsed.symbol] // parsed.divisor) + parsed.offset


def test_creators_are_those_of_the_operators(builder: _Builder) -> None:
    assert builder.creators == {form.op_type: "1" for form in FORMS}


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("op_type", "variant"), list(_ATTRIBUTES), ids=str)
def test_every_form_of_a_node_builds(
    builder: _Builder, op_type: str, variant: str, dtype: str
) -> None:
    node = _node(op_type, variant, dtype)
    said = builder(node)
    assert said["engine_bytes"] > 0, said["errors"]
    assert said["layers"] == ["PLUGIN_V3"]
    # symbolic shapes: what is dynamic stays so
    assert said["outputs"] == [
        [-1 if isinstance(d, str) else d for d in dims] for _, dims in node["outputs"].values()
    ]


@pytest.mark.parametrize(
    ("node", "value", "message"),
    [
        (_node("SelectiveScan"), {"state": ["bf16", ["batch", 64, 16]]}, "'state' must be float32"),
        (_node("SelectiveScan"), {"B": ["fp16", ["batch", "seq_len", 16]]}, "fp16 beside bf16"),
        (_node("SelectiveScan"), {"D": ["bf16", [64, 1]]}, "'D' must have 1 axes, got 2"),
        (_node("SelectiveScan"), {"D": ["bf16", [60]]}, "'D' axis 0 must be d_inner = 64"),
        (_node("SparseMoE", "none", top_k=5), {}, "got top_k 5 and 4 experts"),
        (_node("SparseMoE", "none", weight_format="int3"), {}, "none, int8 or int4, got 'int3'"),
        (_node("SparseMoE", "none", weight_format="int8"), {}, "expected 6 inputs for int8"),
        (_node("SparseMoE", "int8"), {"down": ["fp32", [4, 64, 128]]}, "'down' must be int8"),
        (_node("CachedAttention"), {"past_len": ["fp32", ["batch"]]}, "'past_len' must be int32"),
        (_node("CachedAttention"), {"q": ["bf16", ["batch", "seq_len", 6, 128]]}, "got 128x3;"),
        (_node("CausalConvWithState", activation="none"), {}, "activation must be 'silu'"),
        (_node("MambaScan", eps=1), {}, "'eps' must be a number with a point"),
        (_node("MambaScan"), {"projected": ["bf16", ["batch", "seq_len", 40]]}, "d_state = 36"),
    ],
)
def test_a_bad_node_is_explained_in_tensorrts_log(
    builder: _Builder, node: Any, value: dict[str, Any], message: str
) -> None:
    said = builder(node | {"inputs": node["inputs"] | value})
    assert said["engine_bytes"] == 0
    assert f"{node['op_type']}" in said["errors"]
    assert message in said["errors"]


def test_a_library_without_this_dtype_says_so_when_an_engine_is_built(
    tmp_path: Path, plugin_library: PluginLibrary
) -> None:
    from longllava_trt.plugins_trt.library.build import build_library

    cache = plugin_library.path.parents[2]
    small = build_library(archs=(80,), dtypes=("fp16",), weight_formats=("none",), cache=cache)
    builder = _Builder(small.path)
    errors = builder(_node("SelectiveScan", dtype="bf16"))["errors"]
    builder.close()
    assert "kernel 'scan_step_bf16' is not in this library; build it with this dtype" in errors
