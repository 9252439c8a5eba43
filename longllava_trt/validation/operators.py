"""Level op: each operator of the decoder alone, on the inputs that it meets in the model.

The node under test is the bundle's own, cut out of its decoder graph with its attributes and its function body. Inputs
and expected outputs are recorded while the reference decodes, so sizes and magnitudes are the model's and the carried
state is that of a sequence that has begun.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from longllava_trt.core.parity import FLOAT32_OPERATOR, ParityRow, compare
from longllava_trt.models.spec import RotarySpec
from longllava_trt.plugins_trt.cpu.lower import lower_for_cpu
from longllava_trt.plugins_trt.cpu.register import register_kernels
from longllava_trt.plugins_trt.spec import CAUSAL_CONV, SELECTIVE_SCAN, SPARSE_MOE
from longllava_trt.reference.cache import AttentionState, empty_cache
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.reference.operators import ExpertWeights, Operators, ScanInputs
from longllava_trt.reference.rotary import rotary_tables
from longllava_trt.validation.experts import quantised_inputs
from longllava_trt.validation.parity_case import ParityCase, array_of

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

    from longllava_trt.runtime.backends.ort.kernels import Kernels

__all__ = ["operator_rows"]

_LENGTHS = (1, 3, 65)
"""A decode step; fewer positions than the convolution is wide; one more than a tile of the scan kernel."""
_PAST_LEN = 7
_SPARE_ROOM = 5
_GARBAGE = 1e3
"""Value of the cache beyond the valid positions: large, so that it would show, and finite, as the runtime promises."""
_ATTENTION = "Attention"
_ROTARY = "RotaryEmbedding"
_OWN_KERNELS = frozenset({SELECTIVE_SCAN.op_type, SPARSE_MOE.op_type})
"""Operators that `fast` runs in another way than `onnx`; the rest are standard ONNX and have one."""


class _Call(NamedTuple):
    """One call of an operator: inputs in the order in which `_cut_out` names them."""

    inputs: tuple[NDArray[Any], ...]
    outputs: dict[str, NDArray[Any]]
    """By output name, in node order; keys and values up to the valid positions only."""


class _Recorder:
    """Carries operators out as another does, and keeps the first call of each kind."""

    def __init__(self, ops: Operators) -> None:
        self._ops = ops
        self.calls: dict[str, _Call] = {}

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._ops.rms_norm(x, weight, eps)

    def full_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._ops.full_attention(q, k, v)

    def rotate(
        self, q: Tensor, k: Tensor, state: AttentionState, rotary: RotarySpec
    ) -> tuple[Tensor, Tensor]:
        rotated = self._ops.rotate(q, k, state, rotary)
        past_len = state.key.shape[2]
        positions = torch.arange(past_len, past_len + q.shape[2])[None]
        tables = rotary_tables(positions, rotary, q.shape[-1], q.dtype)
        self._keep(_ROTARY, (q, *tables), y=rotated[0])
        return rotated

    def causal_attention(
        self, q: Tensor, k: Tensor, v: Tensor, state: AttentionState
    ) -> tuple[Tensor, AttentionState]:
        y, after = self._ops.causal_attention(q, k, v, state)
        past_len, total_len = state.key.shape[2], after.key.shape[2]
        if _ATTENTION not in self.calls:
            caches = [_with_room(cache, total_len + _SPARE_ROOM) for cache in state]
            lengths = [np.array([n], dtype=np.int64) for n in (past_len, total_len)]
            self.calls[_ATTENTION] = _Call(
                (array_of(q), array_of(k), array_of(v), *caches, *lengths),
                {"y": array_of(y), "key": array_of(after.key), "value": array_of(after.value)},
            )
        return y, after

    def causal_conv(
        self, u: Tensor, weight: Tensor, bias: Tensor, conv_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, after = self._ops.causal_conv(u, weight, bias, conv_state)
        self._keep(
            CAUSAL_CONV.op_type, (u, weight, bias, conv_state), output=y, present_state=after
        )
        return y, after

    def selective_scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        y, after = self._ops.selective_scan(inputs)
        self._keep(SELECTIVE_SCAN.op_type, inputs, y=y, state_out=after)
        return y, after

    def sparse_moe(
        self, x: Tensor, router_logits: Tensor, experts: Sequence[ExpertWeights], *, top_k: int
    ) -> Tensor:
        y = self._ops.sparse_moe(x, router_logits, experts, top_k=top_k)
        if SPARSE_MOE.op_type not in self.calls:
            gate_up = torch.stack([torch.cat([e.gate, e.up]) for e in experts])
            down = torch.stack([e.down for e in experts])
            self._keep(SPARSE_MOE.op_type, (x, router_logits, gate_up, down), y=y)
        return y

    def _keep(self, op_type: str, inputs: Sequence[Tensor], **outputs: Tensor) -> None:
        if op_type not in self.calls:
            arrays = tuple(array_of(t) for t in inputs)
            self.calls[op_type] = _Call(arrays, {n: array_of(t) for n, t in outputs.items()})


def operator_rows(
    subject: ParityCase, kernels: Sequence[Kernels], *, seed: int
) -> Iterator[ParityRow]:
    """Compare every operator that the decoder has, at each length and on each of ``kernels``."""
    graph = onnx.load(
        subject.bundle / subject.manifest.stage("decoder").file, load_external_data=False
    )
    for length in _LENGTHS:
        calls = _record(subject.reference, length, seed=seed)
        for op_type, call in calls.items():
            model, names = _cut_out(graph, op_type)
            # of quantised experts the reference has only what they stand for
            feeds = dict(zip(names, call.inputs, strict=False))
            feeds |= quantised_inputs(subject.bundle, subject.manifest, names)
            kinds: Sequence[Kernels] = kernels if op_type in _OWN_KERNELS else ("onnx",)
            for kind in kinds:
                label = f"{op_type}.{kind}" if op_type in _OWN_KERNELS else op_type
                session = _load(model, kind)
                actual = session.run(None, feeds)
                for (name, want), got in zip(call.outputs.items(), actual, strict=True):
                    yield compare(
                        f"op.{label}.len{length}.{name}",
                        got[:, :, : want.shape[2]] if op_type == _ATTENTION else got,
                        want,
                        FLOAT32_OPERATOR,
                    )


@torch.no_grad()
def _record(model: LongLLaVA, length: int, *, seed: int) -> dict[str, _Call]:
    """Decode ``length`` positions after a few others, and return the first call of each operator."""
    generator = torch.Generator().manual_seed(seed)
    decoder = model.config.decoder
    ids = torch.randint(decoder.vocab_size, (1, _PAST_LEN + length), generator=generator)
    embeds = model.embed(ids)
    cache = model.decode(embeds[:, :_PAST_LEN], empty_cache(decoder)).cache
    plain, recorder = model.ops, _Recorder(model.ops)
    model.ops = recorder
    try:
        model.decode(embeds[:, _PAST_LEN:], cache)
    finally:
        model.ops = plain
    return recorder.calls


def _with_room(cache: Tensor, capacity: int) -> NDArray[Any]:
    """Return a cache as the runtime holds it, with garbage where nothing has been written."""
    shape = (*cache.shape[:2], capacity, cache.shape[3])
    roomy = np.full(shape, _GARBAGE, dtype=np.float32)
    roomy[:, :, : cache.shape[2]] = array_of(cache)
    return roomy


def _cut_out(graph: onnx.ModelProto, op_type: str) -> tuple[onnx.ModelProto, list[str]]:
    """Make a model of the first node of a kind, and of the cache updates that feed it if it is the attention.

    Returns:
        The model, and its input names in the order of the call's inputs.
    """
    producers = {name: node for node in graph.graph.node for name in node.output}
    node = next(n for n in graph.graph.node if n.op_type == op_type)
    if op_type == _ATTENTION:
        scatters = [producers[name] for name in node.input[1:3]]
        nodes = [*scatters, node]
        caches, new, (past_len, _) = zip(*(s.input for s in scatters), strict=True)
        inputs = [node.input[0], *new, *caches, past_len, node.input[6]]
    else:
        nodes, inputs = [node], list(node.input)
    outputs = [*node.output, *(name for n in nodes[:-1] for name in n.output)]
    types = _declared_types(graph.graph)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            op_type,
            [types[name] for name in inputs],
            [types[name] for name in outputs],
        ),
        opset_imports=graph.opset_import,
        ir_version=graph.ir_version,
        functions=[f for f in graph.functions if f.name == op_type],
    )
    return model, inputs


def _declared_types(graph: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
    """Return the type of every value as the file states it; ONNX Runtime cannot expand some operators without."""
    weights = [
        helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in graph.initializer
    ]
    return {v.name: v for v in (*weights, *graph.value_info, *graph.input, *graph.output)}


def _load(model: onnx.ModelProto, kernels: Kernels) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if kernels == "fast":
        copy = lower_for_cpu(copy)
        register_kernels(options)
    return onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
