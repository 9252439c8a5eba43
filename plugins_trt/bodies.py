"""Arithmetic of the `longllava` operators, as ONNX function bodies that any ONNX runtime can run.

The bodies are ONNX text, with arithmetic and shapes only; nothing here knows kernels or plugins.
Mathematics: the selective scan of Mamba (Gu and Dao 2023, algorithm 2) and the mixture of
experts, as in `spec.py`. Plain ONNX Runtime inlines them, so their cost is the cost of an exported
graph without our kernels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from longllava_trt.plugins_trt.kernels.sparse_moe_formats import GROUP
from longllava_trt.plugins_trt.spec import SELECTIVE_SCAN, SPARSE_MOE, OperatorSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["function_bodies"]

_OPSET = 27

# state and decay are [batch, d_state, d_inner]: with the long axis last, every broadcast is
# contiguous and the sum over d_state is a matrix product, 2.3 times faster in ONNX Runtime than the
# operator's own [d_inner, d_state].
#
# one Scan over time, not several blocks of time at once: those need every decay twice and exceed
# the cache. At seq_len 1024, d_inner 8192, d_state 16 on two cores a token costs 132 us this way
# and 324 us in 32 blocks; at d_inner 1024 both cost 18 us; blocks win (4 us against 7) only at
# d_inner 128. exp() sees delta * A <= 0 only, so nothing can overflow.
_SELECTIVE_SCAN = """
{
    float_u = Cast<to = 1>(u)
    float_z = Cast<to = 1>(z)
    float_dt = Cast<to = 1>(dt)
    float_dt_bias = Cast<to = 1>(dt_bias)
    raw_delta = Add(float_dt, float_dt_bias)
    delta = Softplus(raw_delta)
    delta_u = Mul(delta, float_u)

    float_A_log = Cast<to = 1>(A_log)
    exp_A_log = Exp(float_A_log)
    minus_A = Transpose<perm = [1, 0]>(exp_A_log)
    A = Neg(minus_A)
    float_B = Cast<to = 1>(B)
    float_C = Cast<to = 1>(C)
    start = Transpose<perm = [0, 2, 1]>(state)
    axis_1 = Constant<value_ints = [1]>()
    last_axis = Constant<value_ints = [-1]>()
    end, scanned = Scan<
        num_scan_inputs = 4, scan_input_axes = [1, 1, 1, 1], scan_output_axes = [1],
        body = advance (
        float[batch, d_state, d_inner] h,
        float[batch, d_inner] delta_t, float[batch, d_inner] delta_u_t,
        float[batch, d_state] B_t, float[batch, d_state] C_t
    ) => (float[batch, d_state, d_inner] h_next, float[batch, d_inner] y_t) {
        delta_row = Unsqueeze(delta_t, axis_1)
        delta_u_row = Unsqueeze(delta_u_t, axis_1)
        B_column = Unsqueeze(B_t, last_axis)
        C_row = Unsqueeze(C_t, axis_1)
        exponent = Mul(delta_row, A)
        decay = Exp(exponent)
        kept = Mul(decay, h)
        added = Mul(B_column, delta_u_row)
        h_next = Add(kept, added)
        y_row = MatMul(C_row, h_next)
        y_t = Squeeze(y_row, axis_1)
    }>(start, delta, delta_u, float_B, float_C)
    state_out = Transpose<perm = [0, 2, 1]>(end)

    float_D = Cast<to = 1>(D)
    skip = Mul(float_D, float_u)
    ungated = Add(scanned, skip)
    one = Constant<value_float = 1.0>()
    minus_z = Neg(float_z)
    exp_minus_z = Exp(minus_z)
    gate_divisor = Add(one, exp_minus_z)
    gate = Div(float_z, gate_divisor)
    float_y = Mul(ungated, gate)
    y = CastLike(float_y, u)
}
"""

# one iteration for each expert, in ascending order; an expert without tokens gets zero rows.
_SPARSE_MOE = """
{
    float_logits = Cast<to = 1>(router_logits)
    probabilities = Softmax<axis = -1>(float_logits)
    k = Constant<value_int: int = @top_k>()
    last = Constant<value_ints = [-1]>()
    k_1d = Reshape(k, last)
    top_weights, top_experts = TopK<axis = -1>(probabilities, k_1d)
    routing_weights = CastLike(top_weights, x)
    i0 = Constant<value_ints = [0]>()
    i1 = Constant<value_ints = [1]>()
    num_experts_1d = Shape<start = 0, end = 1>(gate_up)
    first = Constant<value_int = 0>()
    step = Constant<value_int = 1>()
    num_experts = Squeeze(num_experts_1d)
    experts = Range(first, num_experts, step)
    x_shape = Shape(x)
    float_zeros = ConstantOfShape(x_shape)
    zeros = CastLike(float_zeros, x)
    y = Scan<num_scan_inputs = NUM_SCANNED, body = add_expert (
        sums, expert, SLICES
    ) => (next_sums) {
        DEQUANTISED
        is_chosen = Equal(top_experts, expert)
        hits = NonZero(is_chosen)
        tokens, slots = Split<axis = 0, num_outputs = 2>(hits)
        token_ids = Squeeze(tokens, i0)
        rows = Gather(x, token_ids)
        positions = Transpose<perm = [1, 0]>(hits)
        weights_1d = GatherND(routing_weights, positions)
        weights = Unsqueeze(weights_1d, i1)
        gate_up_t = Transpose<perm = [1, 0]>(gate_up_e)
        hidden = MatMul(rows, gate_up_t)
        gate, up = Split<axis = -1, num_outputs = 2>(hidden)
        sigmoid = Sigmoid(gate)
        activated = Mul(gate, sigmoid)
        product = Mul(activated, up)
        down_t = Transpose<perm = [1, 0]>(down_e)
        expert_y = MatMul(product, down_t)
        weighted = Mul(expert_y, weights)
        token_column = Unsqueeze(token_ids, i1)
        next_sums = ScatterND<reduction = "add">(sums, token_column, weighted)
    }>(zeros, experts, STORED)
}
"""

# w = code * scale, in float32, with any axes before rows and columns.
_DEQUANTISE = {
    "int8": """
        NAME_codes = Cast<to = 1>(NAME)
        NAME_end = Constant<value_ints = [-1]>()
        NAME_row_scales = Unsqueeze(NAME_scales, NAME_end)
        NAME_float = Mul(NAME_codes, NAME_row_scales)
    """,
    "int4": f"""
        NAME_mask = Constant<value = uint8 {{15}}>()
        NAME_shift = Constant<value = uint8 {{4}}>()
        NAME_even = BitwiseAnd(NAME, NAME_mask)
        NAME_odd = BitShift<direction = "RIGHT">(NAME, NAME_shift)
        NAME_end = Constant<value_ints = [-1]>()
        NAME_even_column = Unsqueeze(NAME_even, NAME_end)
        NAME_odd_column = Unsqueeze(NAME_odd, NAME_end)
        NAME_pairs = Concat<axis = -1>(NAME_even_column, NAME_odd_column)
        NAME_rows = Shape<end = -1>(NAME)
        NAME_wide = Concat<axis = 0>(NAME_rows, NAME_end)
        NAME_flat = Reshape(NAME_pairs, NAME_wide)
        NAME_raw = Cast<to = 1>(NAME_flat)
        NAME_zero_point = Constant<value_float = 8.0>()
        NAME_codes = Sub(NAME_raw, NAME_zero_point)
        NAME_group = Constant<value_ints = [{GROUP}]>()
        NAME_groups = Shape(NAME_scales)
        NAME_by_group = Concat<axis = 0>(NAME_groups, NAME_group)
        NAME_scale_column = Unsqueeze(NAME_scales, NAME_end)
        NAME_repeated = Expand(NAME_scale_column, NAME_by_group)
        NAME_roomy = Reshape(NAME_repeated, NAME_wide)
        NAME_begin = Constant<value_ints = [0]>()
        NAME_columns = Shape<start = -1>(NAME_codes)
        NAME_column_scales = Slice(NAME_roomy, NAME_begin, NAME_columns, NAME_end)
        NAME_float = Mul(NAME_codes, NAME_column_scales)
    """,
}


def function_bodies(weight_format: str = "none") -> list[onnx.FunctionProto]:
    """Return the body of every `longllava` operator, for a model of IR version 11 or later.

    Args:
        weight_format: Format of the experts: `none`, `int8` or `int4`. A function has a fixed list
            of inputs, so one model holds experts of one format.
    """
    scan = _function(SELECTIVE_SCAN, _SELECTIVE_SCAN)
    return [scan, _sparse_moe(weight_format)]


def _sparse_moe(weight_format: str) -> onnx.FunctionProto:
    """Return the body for a format of the experts' matrices; its Scan takes an expert at a time."""
    if weight_format == "none":
        always = tuple(a for a in SPARSE_MOE.attributes if a.default is None)
        spec, slices, dequantised = replace(SPARSE_MOE, attributes=always), "gate_up_e, down_e", ""
    else:
        spec = replace(SPARSE_MOE, inputs=SPARSE_MOE.inputs + SPARSE_MOE.optional_inputs)
        slices = "gate_up_q, down_q, gate_up_q_scales, down_q_scales"
        dequantised = "".join(
            _DEQUANTISE[weight_format].replace("NAME", f"{name}_q")
            + f"{name}_e = CastLike({name}_q_float, x)\n"
            for name in ("gate_up", "down")
        )
    stored = spec.input_names[2:]
    words = {
        "NUM_SCANNED": str(1 + len(stored)),
        "STORED": ", ".join(stored),
        "SLICES": slices,
        "DEQUANTISED": dequantised,
    }
    body = _SPARSE_MOE
    for word, meaning in words.items():
        body = body.replace(word, meaning)
    return _function(spec, body)


def _function(spec: OperatorSpec, body: str) -> onnx.FunctionProto:
    """Parse a body under the operator's own name, inputs, outputs and attributes."""
    attributes = ", ".join(attribute.name for attribute in spec.attributes)
    inputs = ", ".join(value.name for value in spec.inputs)
    outputs = ", ".join(value.name for value in spec.outputs)
    head = f"{spec.op_type} <{attributes}> " if attributes else f"{spec.op_type} "
    return _parse(f"{head}({inputs}) => ({outputs}) {body}")


def _parse(text: str) -> onnx.FunctionProto:
    from onnx import parser

    head = f'<domain: "{SPARSE_MOE.domain}", opset_import: ["": {_OPSET}]>\n'
    return parser.parse_function(head + text)
