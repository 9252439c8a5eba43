"""Builds an engine from a node at a time with our plugins, and prints a line of JSON for each.

A process of its own: plugins speak to the first logger of their process, whoever made it. Reads on stdin lines of
`{"op_type", "domain", "attributes", "inputs": {name: [dtype, dims]}, "outputs": …}`; a dim that is a string is dynamic.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

from longllava_trt.plugins_trt.registry import import_tensorrt, load_plugins

_BOUNDS = {"batch": (1, 1, 2), "seq_len": (1, 64, 4096), "num_tokens": (1, 64, 4096)}
_ONNX = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16, "fp32": TensorProto.FLOAT}
_ONNX |= {"int32": TensorProto.INT32}
_ONNX |= {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}

flavour = import_tensorrt()
trt = flavour.module
_Base: Any = trt.ILogger


class Logger(_Base):  # type: ignore[misc]  # it has no types
    """Keeps errors."""

    def __init__(self) -> None:
        _Base.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Keep an error."""
        if severity <= trt.ILogger.ERROR:
            self.errors.append(message)


def _parse(network: Any, node: dict[str, Any], logger: Logger) -> bool:
    def infos(values: dict[str, Any]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, _ONNX[dtype], dims)
            for name, (dtype, dims) in values.items()
        ]

    made = helper.make_node(
        node["op_type"],
        list(node["inputs"]),
        list(node["outputs"]),
        domain=node["domain"],
        name="node",
        **node["attributes"],
    )
    graph = helper.make_graph([made], "one", infos(node["inputs"]), infos(node["outputs"]))
    opsets = [helper.make_opsetid("", 27), helper.make_opsetid("longllava", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    return bool(trt.OnnxParser(network, logger).parse(model.SerializeToString()))


def _build(node: dict[str, Any], logger: Logger) -> dict[str, Any]:
    logger.errors.clear()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    ok = _parse(network, node, logger)
    engine = None
    if ok:
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        if flavour.flavour == "tensorrt-rtx":
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.SM80, 0)
        for name, (_, dims) in node["inputs"].items():
            bounds = [
                tuple(_BOUNDS[d][i] if isinstance(d, str) else d for d in dims) for i in range(3)
            ]
            profile.set_shape(name, *bounds)
        config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
    return {
        "layers": [network.get_layer(i).type.name for i in range(network.num_layers)],
        "outputs": [list(network.get_output(i).shape) for i in range(network.num_outputs)],
        "engine_bytes": engine.nbytes if engine else 0,
        "errors": "\n".join(logger.errors),
    }


def _say(document: Any) -> None:
    """Print a line at once: who reads it waits for it."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _main() -> None:
    logger = Logger()
    builder = trt.Builder(logger)  # makes this logger the process's
    creators = dict(load_plugins(flavour, Path(sys.argv[1])))
    _say(creators)
    for line in sys.stdin:
        _say(_build(json.loads(line), logger))
    del builder


_main()
