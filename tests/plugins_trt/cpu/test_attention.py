"""The CPU's attention against float64, in the graph that the exporter writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from longllava_trt.plugins_trt.cpu.lower_mixers import fuse_mixers
from longllava_trt.plugins_trt.cpu.op_names import ATTENTION, CAUSAL_CONV, DOMAIN
from longllava_trt.plugins_trt.cpu.register import register_kernels

LIMIT = 2e-6
Arrays = dict[str, np.ndarray]
Shape = list[str | int | None]


class Sizes(NamedTuple):
    heads: int
    kv_heads: int
    head_dim: int


SIZES = [Sizes(4, 2, 8), Sizes(8, 1, 64), Sizes(2, 2, 80), Sizes(3, 1, 16), Sizes(4, 4, 130)]


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node; `-` is an input that is left out."""
    names = [name.strip("-") for name in inputs.split()]
    return helper.make_node(op_type, names, outputs.split(), **attributes)


def exported(sizes: Sizes, **attributes: Any) -> onnx.ModelProto:
    """Return what the exporter writes around one attention."""
    heads, kv_heads, head_dim = sizes
    nodes = [
        node("Shape", "q", "batch", start=0, end=1),
        node("Shape", "q", "seq_len", start=1, end=2),
        node("Squeeze", "seq_len", "new_len"),
        node("Concat", "batch seq_len heads head_dim", "q_shape", axis=0),
        node("Concat", "batch seq_len kv_heads head_dim", "kv_shape", axis=0),
        node("Concat", "batch seq_len width", "y_shape", axis=0),
    ]
    for name in "qkv":
        shape = "q_shape" if name == "q" else "kv_shape"
        nodes.append(node("Reshape", f"{name} {shape}", f"{name}_split", allowzero=1))
        nodes.append(node("Transpose", f"{name}_split", f"{name}_heads", perm=[0, 2, 1, 3]))
    causal = {"is_causal": 1, "softmax_precision": 1} | attributes
    nodes += [
        node("TensorScatter", "past_key k_heads past_len", "present_key", axis=2),
        node("TensorScatter", "past_value v_heads past_len", "present_value", axis=2),
        node("Add", "past_len new_len", "total_len"),
        node("Attention", "q_heads present_key present_value - - - total_len", "a", **causal),
        node("Transpose", "a", "a_steps", perm=[0, 2, 1, 3]),
        node("Reshape", "a_steps y_shape", "y", allowzero=1),
    ]
    numbers = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "width": heads * head_dim,
    }
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [1], [n]) for name, n in numbers.items()
    ]
    cache: Shape = ["b", kv_heads, "capacity", head_dim]
    steps: Shape = ["b", "s", None]
    shapes = dict.fromkeys("qkv", steps) | {
        "past_key": cache,
        "past_value": cache,
    }
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    inputs.append(helper.make_tensor_value_info("past_len", TensorProto.INT64, ["b"]))
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in {"y": shapes["q"], "present_key": cache, "present_value": cache}.items()
    ]
    return helper.make_model(
        helper.make_graph(nodes, "attention", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 27), helper.make_opsetid(DOMAIN, 1)],
        ir_version=11,
    )


def fused(sizes: Sizes) -> onnx.ModelProto:
    model = exported(sizes)
    fuse_mixers(model.graph)
    assert [n.op_type for n in model.graph.node] == [ATTENTION]
    return model


def session(model: onnx.ModelProto, *, threads: int = 2) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    register_kernels(options)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def make(sizes: Sizes, past: list[int], seq_len: int, *, spare: int = 5) -> Arrays:
    """Return inputs whose cache holds NaN wherever nothing was written."""
    heads, kv_heads, head_dim = sizes
    rng = np.random.default_rng(seq_len)
    batch, capacity = len(past), max(past) + seq_len + spare
    widths = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
    arrays = {
        name: rng.standard_normal((batch, seq_len, width), dtype=np.float32)
        for name, width in widths.items()
    }
    for name in ("past_key", "past_value"):
        cache = rng.standard_normal((batch, kv_heads, capacity, head_dim), dtype=np.float32)
        for entry, used in zip(cache, past, strict=True):
            entry[:, used:] = np.nan
        arrays[name] = cache
    return arrays | {"past_len": np.array(past, np.int64)}


def scattered(arrays: Arrays, new: str, cache: str) -> np.ndarray:
    """Return the cache with the new positions in their places."""
    written = arrays[cache].copy()
    batch, kv_heads, _, head_dim = written.shape
    for b in range(batch):
        first, update = int(arrays["past_len"][b]), arrays[new][b]
        by_head = update.reshape(-1, kv_heads, head_dim).swapaxes(0, 1)
        written[b, :, first : first + len(update)] = by_head
    return written


def oracle(arrays: Arrays, *, ahead: int = 0) -> np.ndarray:
    """Softmax over all keys up to each query in float64; the keyword shows each query that many more."""
    keys, values = scattered(arrays, "k", "past_key"), scattered(arrays, "v", "past_value")
    batch, seq_len, width = arrays["q"].shape
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    q = arrays["q"].astype(np.float64).reshape(batch, seq_len, width // head_dim, head_dim)
    y, group = np.empty_like(q), q.shape[2] // kv_heads
    for b, t, head in np.ndindex(q.shape[:3]):
        last = int(arrays["past_len"][b]) + seq_len
        seen = min(int(arrays["past_len"][b]) + t + 1 + ahead, last)
        scores = keys[b, head // group, :seen].astype(np.float64) @ q[b, t, head] / head_dim**0.5
        p = np.exp(scores - scores.max())
        y[b, t, head] = p / p.sum() @ values[b, head // group, :seen].astype(np.float64)
    return y.reshape(batch, seq_len, width)


def check(arrays: Arrays, outputs: list[np.ndarray], relative_rms: Any) -> None:
    y, key, value = outputs
    assert relative_rms(y, oracle(arrays)) <= LIMIT
    np.testing.assert_array_equal(key, scattered(arrays, "k", "past_key"))
    np.testing.assert_array_equal(value, scattered(arrays, "v", "past_value"))


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "heads{}of{}x{}".format(*s))
@pytest.mark.parametrize("past", [0, 1, 127, 300], ids=lambda n: f"past{n}")
def test_attention_equals_float64(sizes: Sizes, past: int, relative_rms: Any) -> None:
    runs = session(fused(sizes))
    for seq_len in (1, 2, 33, 65):
        arrays = make(sizes, [past], seq_len)
        check(arrays, runs.run(None, arrays), relative_rms)


def test_sequences_of_different_lengths(relative_rms: Any) -> None:
    runs = session(fused(SIZES[0]))
    for seq_len in (1, 40):
        arrays = make(SIZES[0], [600, 0, 255], seq_len)
        check(arrays, runs.run(None, arrays), relative_rms)


def test_last_position_of_the_cache(relative_rms: Any) -> None:
    arrays = make(SIZES[0], [256], 1, spare=0)
    check(arrays, session(fused(SIZES[0])).run(None, arrays), relative_rms)


@pytest.mark.parametrize("seq_len", [1, 2, 65], ids=lambda n: f"len{n}")
def test_a_shared_cache_is_appended_to(seq_len: int, relative_rms: Any) -> None:
    arrays = make(SIZES[0], [300], seq_len)
    before = {name: array.copy() for name, array in arrays.items()}
    runs = session(fused(SIZES[0]))
    binding = runs.io_binding()
    for name, array in arrays.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(name, value)
        if name in ("past_key", "past_value"):
            binding.bind_ortvalue_output(name.replace("past", "present"), value)
    y = np.full(arrays["q"].shape, np.nan, np.float32)
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(y))
    runs.run_with_iobinding(binding)
    check(before, [y, arrays["past_key"], arrays["past_value"]], relative_rms)


def test_comparison_fails_when_a_query_sees_one_key_too_many(relative_rms: Any) -> None:
    arrays = make(SIZES[0], [127], 33)
    y = session(fused(SIZES[0])).run(["y"], arrays)[0]
    for ahead in (-1, 1, 33):
        assert relative_rms(y, oracle(arrays, ahead=ahead)) > 1000 * LIMIT


def in_chunks(runs: onnxruntime.InferenceSession, arrays: Arrays, cuts: list[int]) -> np.ndarray:
    """Feed a prompt in chunks that end at the cuts, carrying the cache."""
    parts, begin = [], 0
    carried = {name: arrays[name] for name in ("past_key", "past_value")}
    for end in cuts:
        chunk = {name: np.ascontiguousarray(arrays[name][:, begin:end]) for name in "qkv"}
        past_len = arrays["past_len"] + begin
        y, key, value = runs.run(None, chunk | carried | {"past_len": past_len})
        parts.append(y)
        carried, begin = {"past_key": key, "past_value": value}, end
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("past", [0, 130], ids=lambda n: f"past{n}")
def test_a_prompt_in_chunks_equals_the_whole_to_the_bit(past: int) -> None:
    arrays = make(SIZES[0], [past] * 3, 400)
    runs = session(fused(SIZES[0]))
    whole = in_chunks(runs, arrays, [400])
    rng = np.random.default_rng(past)
    for count in (1, 2, 7, 30):
        cuts = [*sorted(rng.choice(399, count, replace=False) + 1), 400]
        np.testing.assert_array_equal(in_chunks(runs, arrays, cuts), whole)


@pytest.mark.parametrize("seq_len", [1, 300], ids=lambda n: f"len{n}")
def test_result_does_not_depend_on_threads(seq_len: int) -> None:
    arrays = make(SIZES[0], [700], seq_len)
    one, two = (session(fused(SIZES[0]), threads=n).run(["y"], arrays)[0] for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_attention_is_finite_at_extremes(relative_rms: Any) -> None:
    arrays = make(SIZES[0], [300], 33)
    arrays["q"] *= 1000
    y = session(fused(SIZES[0])).run(["y"], arrays)[0]
    # scores of thousands round to 2^-12: what they leave of a softmax is coarse, but it is one key's value
    assert relative_rms(y, oracle(arrays)) <= 1e-3


def _set(name: str, value: np.ndarray) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("past_len", np.array([7], np.int64)), "fit the cache"),
        (_set("past_len", np.array([-1], np.int64)), "fit the cache"),
        (_set("past_len", np.array([2**62], np.int64)), "fit the cache"),
        (_set("past_len", np.array([1, 1], np.int64)), "'past_len' must be .batch. int64"),
        (_set("q", np.zeros((1, 2, 40), np.float32)), "whole heads"),
        (_set("q", np.zeros((1, 3, 32), np.float32)), "'k' must be"),
        (_set("v", np.zeros((1, 2, 24), np.float32)), "'v' must be"),
        (_set("past_value", np.zeros((1, 2, 9, 8), np.float32)), "'past_value' must be"),
        (lambda a: a.update({n: a[n][:, :0] for n in "qkv"}), "at least one position"),
        (lambda a: a.update({n: a[n][..., :8] for n in "kv"}), "whole heads"),
    ],
    ids=["beyond", "negative", "huge", "lengths", "q", "steps", "v", "caches", "none", "kv"],
)
def test_bad_inputs_are_refused(change: Callable[[Arrays], None], message: str) -> None:
    model = fused(SIZES[0])
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")
    arrays = make(SIZES[0], [1], 2)
    change(arrays)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException, match=message):
        session(model).run(None, arrays)


def _by_type(model: onnx.ModelProto, op_type: str, number: int = 0) -> onnx.NodeProto:
    found: list[onnx.NodeProto] = [n for n in model.graph.node if n.op_type == op_type]
    return found[number]


def _read_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["a"], ["other"]))


def _read_cache(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["present_key"], ["other"]))


def _output_inside(model: onnx.ModelProto) -> None:
    model.graph.output.add().name = "a"


def _other_axis(model: onnx.ModelProto) -> None:
    _by_type(model, "TensorScatter", 1).attribute[0].i = 1


def _other_length(model: onnx.ModelProto) -> None:
    _by_type(model, "Add").input[1] = "past_len"


def _other_heads(model: onnx.ModelProto) -> None:
    _by_type(model, "Concat", 2).input[2] = "heads"


def _other_axes(model: onnx.ModelProto) -> None:
    _by_type(model, "Transpose", 3).attribute[0].ints[:] = [0, 1, 2, 3]


def _half(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


@pytest.mark.parametrize(
    "change",
    [
        _read_twice,
        _read_cache,
        _output_inside,
        _other_axis,
        _other_length,
        _other_heads,
        _other_axes,
        _half,
    ],
)
def test_what_differs_is_left_alone(change: Callable[[onnx.ModelProto], None]) -> None:
    model = exported(SIZES[0])
    change(model)
    before = model.SerializeToString(deterministic=True)
    fuse_mixers(model.graph)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "attributes",
    [{"is_causal": 0}, {"softcap": 2.0}, {"scale": 0.5}, {"softmax_precision": 10}],
    ids=lambda a: next(iter(a)),
)
def test_other_attributes_are_left_alone(attributes: dict[str, Any]) -> None:
    model = exported(SIZES[0], **attributes)
    before = model.SerializeToString(deterministic=True)
    fuse_mixers(model.graph)
    assert model.SerializeToString(deterministic=True) == before


def test_an_exported_decoder_keeps_its_contract(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "decoder.onnx", load_external_data=False)
    outputs = [value.name for value in model.graph.output]
    kinds = [n.op_type for n in model.graph.node]
    layers = [n.output[0] for n in model.graph.node if n.output[0].endswith(".hidden_states")]
    fuse_mixers(model.graph)
    after = [n.op_type for n in model.graph.node]
    made = {name for n in model.graph.node for name in n.output}
    assert not {"Attention", "TensorScatter", "CausalConvWithState"} & set(after)
    assert after.count(ATTENTION) == kinds.count("Attention") > 0
    assert after.count(CAUSAL_CONV) == kinds.count("CausalConvWithState") > 0
    assert [value.name for value in model.graph.output] == outputs
    assert {*outputs, *layers} <= made
    assert layers
