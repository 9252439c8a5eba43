"""The CPU operators: names, values and compiled kernels, as ONNX Runtime is told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longllava_trt.plugins_trt.cpu.attention_kernel import (
    attention_append,
    attention_attend,
    attention_merge,
    attention_plan,
)
from longllava_trt.plugins_trt.cpu.conv_kernel import conv_phase, conv_plan
from longllava_trt.plugins_trt.cpu.linear_kernel import linear_phase, linear_plan
from longllava_trt.plugins_trt.cpu.moe_kernel import (
    moe_activate,
    moe_combine,
    moe_down,
    moe_gather,
    moe_plan,
    moe_route,
)
from longllava_trt.plugins_trt.cpu.op_names import (
    ATTENTION,
    CAUSAL_CONV,
    LINEAR,
    MOE,
    MOE_CODES,
    MOE_STACKED,
    SCAN,
)
from longllava_trt.plugins_trt.cpu.ort_custom_op import NativeOperator, NativeValue
from longllava_trt.plugins_trt.cpu.scan_kernel import scan_phase, scan_plan
from longllava_trt.plugins_trt.cpu.stored_matrix import BFLOAT16, FLOAT, FLOAT16, INT8, INT64, UINT8
from longllava_trt.plugins_trt.spec import SELECTIVE_SCAN, SPARSE_MOE

if TYPE_CHECKING:
    from longllava_trt.plugins_trt.spec import OperatorValue

__all__ = ["native_operators"]

_STORED = (FLOAT, FLOAT16, BFLOAT16)
_CACHE = ("batch", "kv_heads", "capacity", "head_dim")
_SCRATCH = NativeValue("scratch", ("scratch",))
_GATE, _UP = (NativeValue(n, ("intermediate", "hidden"), _STORED) for n in ("gate", "up"))
_DOWN = NativeValue("down", ("hidden", "intermediate"), _STORED)
_PACKED = (
    NativeValue("gate_up", ("num_experts", "2*intermediate", "half_hidden"), (UINT8,)),
    NativeValue("down", ("num_experts", "hidden", "half_intermediate"), (UINT8,)),
    NativeValue("gate_up_scales", ("num_experts", "2*intermediate", "hidden_groups")),
    NativeValue("down_scales", ("num_experts", "hidden", "intermediate_groups")),
)


def native_operators() -> tuple[NativeOperator, ...]:
    """Return all of them, compiling what no disk cache holds."""
    tokens = _values(SPARSE_MOE.inputs[:2])
    scan = NativeOperator(
        SCAN,
        plan=scan_plan,
        phases=(scan_phase,),
        inputs=_values(SELECTIVE_SCAN.inputs),
        outputs=_values(SELECTIVE_SCAN.outputs),
    )
    linear = NativeOperator(
        LINEAR,
        plan=linear_plan,
        phases=(linear_phase,),
        inputs=(NativeValue("x", ("...", "in")), NativeValue("weight", ("out", "in"), _STORED)),
        outputs=(NativeValue("y", ("...", "out")),),
    )
    weights = {
        MOE: tokens,
        MOE_STACKED: tokens + _values(SPARSE_MOE.inputs[2:], _STORED),
        MOE_CODES["int8"]: tokens
        + _values(SPARSE_MOE.inputs[2:], (INT8,))
        + _values(SPARSE_MOE.optional_inputs),
        MOE_CODES["int4"]: tokens + _PACKED,
    }
    attention = NativeOperator(
        ATTENTION,
        plan=attention_plan,
        phases=(attention_append, attention_attend, attention_merge),
        inputs=(
            NativeValue("q", ("batch", "seq_len", "q_width")),
            NativeValue("k", ("batch", "seq_len", "kv_width")),
            NativeValue("v", ("batch", "seq_len", "kv_width")),
            NativeValue("past_key", _CACHE),
            NativeValue("past_value", _CACHE),
            NativeValue("past_len", ("batch",), (INT64,)),
        ),
        outputs=(
            NativeValue("y", ("batch", "seq_len", "q_width")),
            NativeValue("present_key", _CACHE),
            NativeValue("present_value", _CACHE),
            _SCRATCH,
        ),
        problem="there must be at least one position, past_len and the new ones must fit the cache, "
        "and q, k and v be whole heads of its head_dim",
    )
    conv = NativeOperator(
        CAUSAL_CONV,
        plan=conv_plan,
        phases=(conv_phase,),
        inputs=(
            NativeValue("x", ("batch", "seq_len", "channels")),
            NativeValue("weight", ("channels", "one", "width")),
            NativeValue("bias", ("channels",)),
            NativeValue("state", ("batch", "channels", "state_width")),
        ),
        outputs=(
            NativeValue("y", ("batch", "seq_len", "channels")),
            NativeValue("state_out", ("batch", "channels", "state_width")),
        ),
        problem="there must be at least one position, weight [channels, 1, width] and "
        "state [batch, channels, width - 1]",
    )
    mixtures = (
        NativeOperator(
            name,
            plan=moe_plan,
            phases=(moe_route, moe_gather, moe_activate, moe_down, moe_combine),
            inputs=inputs,
            repeated=(_GATE, _UP, _DOWN) if name == MOE else (),
            outputs=(*_values(SPARSE_MOE.outputs), _SCRATCH),
            attributes=(SPARSE_MOE.attributes[0].name,),
            problem="top_k must be from 1 to the experts there are, each of them be given, and packed "
            "codes and their groups of columns be as wide as x",
        )
        for name, inputs in weights.items()
    )
    return (scan, linear, attention, conv, *mixtures)


def _values(
    values: tuple[OperatorValue, ...], types: tuple[int, ...] = (FLOAT,)
) -> tuple[NativeValue, ...]:
    return tuple(NativeValue(v.name, tuple(map(str, v.axes)), types) for v in values)
