"""A parsed TensorRT network, computed in NumPy: what TensorRT was given, after all that was changed in it.

Knows the layers that our stages consist of, and no others. Plugins are computed by the function bodies of their nodes,
in ONNX Runtime, and MambaScan by the plain version that its kernels are compared with. Everything is float32, as the network
must be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from longllava_trt.export.engine.network import StageNetwork, network_layers, node_name
from longllava_trt.plugins_trt.kernels.naive import naive_mamba_scan
from longllava_trt.plugins_trt.spec import MAMBA_SCAN
from tests.export.engine.engine_bodies import add_engine_bodies

Values = dict[str, np.ndarray]

_CLASSES = {
    "ACTIVATION": "IActivationLayer",
    "ATTENTION_INPUT": "IAttentionInputLayer",
    "CAST": "ICastLayer",
    "CONCATENATION": "IConcatenationLayer",
    "CONSTANT": "IConstantLayer",
    "CONVOLUTION": "IConvolutionLayer",
    "ELEMENTWISE": "IElementWiseLayer",
    "GATHER": "IGatherLayer",
    "KV_CACHE_UPDATE": "IKVCacheUpdateLayer",
    "MATRIX_MULTIPLY": "IMatrixMultiplyLayer",
    "NORMALIZATION": "INormalizationLayer",
    "REDUCE": "IReduceLayer",
    "SHUFFLE": "IShuffleLayer",
    "SLICE": "ISliceLayer",
    "UNARY": "IUnaryLayer",
}
_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "MAX": np.maximum,
    "MIN": np.minimum,
    "PROD": np.multiply,
    "SUB": np.subtract,
    "SUM": np.add,
    "DIV": np.divide,
}
_DTYPES = {"FLOAT": np.float32, "INT32": np.int32, "INT64": np.int64}


def compute(trt: Any, parsed: StageNetwork, inputs: Mapping[str, np.ndarray]) -> Values:
    """Return the outputs of a network by name.

    Args:
        trt: The module that parsed it.
        parsed: The network, with its plugins.
        inputs: Weights that are inputs included.
    """
    values = dict(inputs)
    for layer in network_layers(parsed.network):
        kind = layer.type.name
        if kind in _CLASSES:
            # the bindings may give a layer no class of its own
            layer.__class__ = getattr(trt, _CLASSES[kind])
        taken = [layer.get_input(i) for i in range(layer.num_inputs)]
        arrays = [None if tensor is None else values[tensor.name] for tensor in taken]
        if kind == "PLUGIN_V3":
            results = _plugin(parsed, node_name(layer), arrays)
        else:
            results = [_LAYERS[kind](trt, layer, *arrays)]
        for place, result in enumerate(results):
            values[layer.get_output(place).name] = np.asarray(result)
    names = [parsed.network.get_output(i).name for i in range(parsed.network.num_outputs)]
    return {name: values[name] for name in names}


def _axes(mask: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(8) if mask >> axis & 1)


def _activation(trt: Any, layer: Any, x: Any) -> Any:
    assert layer.type == trt.ActivationType.SIGMOID
    return 1 / (1 + np.exp(-x))


def _attention(trt: Any, layer: Any, q: Any, k: Any, v: Any) -> Any:
    attention = layer.attention
    assert attention.norm_op == trt.AttentionNormalizationOp.SOFTMAX
    assert attention.causal_kind == trt.CausalMaskKind.NONE
    scores = q @ k.swapaxes(2, 3)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True) @ v


def _cast(_: Any, layer: Any, x: Any) -> Any:
    return x.astype(_DTYPES[layer.to_type.name])


def _constant(_: Any, layer: Any) -> Any:
    return np.array(layer.weights).reshape(tuple(layer.shape))


def _convolution(_: Any, layer: Any, x: Any, weight: Any, *bias: Any) -> Any:
    assert not bias
    size, _ = kernel = tuple(layer.kernel_size_nd)
    assert tuple(layer.stride_nd) == kernel
    assert not any(layer.padding_nd)
    images, channels, height, width = x.shape
    patches = x.reshape(images, channels, height // size, size, width // size, size)
    return np.einsum("bchiwj,ocij->bohw", patches, weight, optimize=True)


def _elementwise(_: Any, layer: Any, x: Any, y: Any) -> Any:
    return _ELEMENTWISE[layer.op.name](x, y)


def _gather(trt: Any, layer: Any, x: Any, indices: Any) -> Any:
    assert layer.mode == trt.GatherMode.DEFAULT
    assert layer.num_elementwise_dims == 0
    return np.take(x, indices, axis=layer.axis)


def _cache_update(_: Any, __: Any, cache: Any, update: Any, index: Any) -> Any:
    written = cache.copy()
    written[:, :, int(index[0]) : int(index[0]) + update.shape[2]] = update
    return written


def _product(trt: Any, layer: Any, x: Any, y: Any) -> Any:
    operands = []
    for array, op in ((x, layer.op0), (y, layer.op1)):
        assert op in (trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE)
        operands.append(array.swapaxes(-1, -2) if op == trt.MatrixOperation.TRANSPOSE else array)
    return operands[0] @ operands[1]


def _normalization(_: Any, layer: Any, x: Any, scale: Any, bias: Any) -> Any:
    assert layer.num_groups == 1
    axes = _axes(layer.axes)
    centred = x - x.mean(axes, keepdims=True)
    spread = np.sqrt((centred**2).mean(axes, keepdims=True) + np.float32(layer.epsilon))
    return centred / spread * scale + bias


def _reduce(trt: Any, layer: Any, x: Any) -> Any:
    assert layer.op == trt.ReduceOperation.AVG
    return x.mean(_axes(layer.axes), keepdims=layer.keep_dims)


def _shuffle(_: Any, layer: Any, x: Any, *shape: Any) -> Any:
    x = x.transpose(tuple(layer.first_transpose)[: x.ndim])
    wanted = None
    if shape:
        wanted = shape[0].tolist()
    elif layer.reshape_dims is not None and len(layer.reshape_dims) >= 0:
        wanted = list(layer.reshape_dims)
    if wanted is not None:
        if layer.zero_is_placeholder:
            wanted = [x.shape[i] if dim == 0 else dim for i, dim in enumerate(wanted)]
        x = x.reshape(wanted)
    return x.transpose(tuple(layer.second_transpose)[: x.ndim])


def _slice(trt: Any, layer: Any, x: Any, *given: Any) -> Any:
    assert layer.mode == trt.SampleMode.STRICT_BOUNDS
    parts = [layer.start, layer.shape, layer.stride]
    for place, array in enumerate(given[:3]):
        if array is not None:
            parts[place] = array.tolist()
    axes = range(x.ndim) if layer.axes is None else layer.axes
    for axis, start, size, stride in zip(axes, *parts, strict=True):
        x = np.take(x, start + stride * np.arange(size), axis=axis)
    return x


def _unary(_: Any, layer: Any, x: Any) -> Any:
    if layer.op.name == "SQRT":
        return np.sqrt(x)
    assert layer.op.name == "ERF"
    return np.vectorize(math.erf, otypes=[np.float32])(x)


_LAYERS: dict[str, Callable[..., Any]] = {
    "ACTIVATION": _activation,
    "ATTENTION_INPUT": _attention,
    "ATTENTION_OUTPUT": lambda _, __, x: x,
    "CAST": _cast,
    "CONCATENATION": lambda _, layer, *parts: np.concatenate(parts, axis=layer.axis),
    "CONSTANT": _constant,
    "CONVOLUTION": _convolution,
    "ELEMENTWISE": _elementwise,
    "GATHER": _gather,
    "KV_CACHE_UPDATE": _cache_update,
    "MATRIX_MULTIPLY": _product,
    "NORMALIZATION": _normalization,
    "REDUCE": _reduce,
    "SHAPE": lambda _, __, x: np.array(x.shape, np.int64),
    "SHUFFLE": _shuffle,
    "SLICE": _slice,
    "SQUEEZE": lambda _, __, x, *axes: np.squeeze(x),
    "UNARY": _unary,
}


def _plugin(parsed: StageNetwork, name: str, arrays: list[Any]) -> list[Any]:
    """Compute a plugin's node alone."""
    node = onnx.NodeProto()
    node.CopyFrom(next(n for n in parsed.model.graph.node if n.name == name))
    if node.op_type == MAMBA_SCAN.op_type:
        eps = onnx.helper.get_node_attr_value(node, "eps")
        return [t.numpy() for t in naive_mamba_scan(*map(torch.from_numpy, arrays), eps=eps)]
    last = [a for a in node.attribute if a.name == "channels_last"]
    for attribute in last:
        # a layout that TensorRT alone is asked for: the first channels of each token
        node.attribute.remove(attribute)
        d_inner = arrays[1].shape[0]
        arrays = [arrays[0][:, :, :d_inner].swapaxes(1, 2), *arrays[1:]]
    return _body(parsed, node, arrays, turned=bool(last))


def _body(
    parsed: StageNetwork, node: onnx.NodeProto, arrays: list[Any], *, turned: bool
) -> list[Any]:
    """Compute a node by its function body."""
    names = [value for value in node.input if value]
    feed = {key: np.ascontiguousarray(a) for key, a in zip(names, arrays, strict=True)}
    inputs = [
        onnx.helper.make_tensor_value_info(
            key, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape
        )
        for key, a in feed.items()
    ]
    outputs = [
        onnx.helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in node.output
    ]
    graph = onnx.helper.make_graph([node], "plugin", inputs, outputs)
    model = onnx.ModelProto()
    model.CopyFrom(parsed.model)
    model.graph.CopyFrom(graph)
    add_engine_bodies(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    first, *rest = session.run(None, feed)
    return [first.swapaxes(1, 2) if turned else first, *rest]
