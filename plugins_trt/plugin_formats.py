"""The operators' forms: their tensors in every layout and weight format that our plugins know.

`spec.py` defines an operator. On a GPU some of its tensors may have other shapes or dtypes; each
such choice is a form. The C++ host checks tensors with these tables, and gives TensorRT formats and
output shapes from them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from longllava_trt.plugins_trt.kernels.sparse_moe_formats import GROUP
from longllava_trt.plugins_trt.spec import (
    CACHED_ATTENTION,
    CAUSAL_CONV,
    MAMBA_SCAN,
    SELECTIVE_SCAN,
    SPARSE_MOE,
    OperatorSpec,
)

__all__ = ["FORMS", "Axis", "Form", "FormValue", "parse_axis"]

_AXIS = re.compile(r"(?:(\d+)\*)?([a-z]\w*)(?:/(\d+))?(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class FormValue:
    """One input or output."""

    name: str
    axes: tuple[str | int, ...]
    """As `OperatorValue.axes`; also `x/n`, which is x divided by n, rounded up."""
    dtype: str
    """`T`, `float32`, `int32`, `int8`, or `packed`: two int4 in a byte, as int8 or uint8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One operator in one layout and weight format."""

    op_type: str
    variant: str = ""
    """Name of the form; empty for the specification's own."""
    inputs: tuple[FormValue, ...]
    outputs: tuple[FormValue, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension: ceil(scale * symbol / divisor) + offset; without a symbol, the offset."""

    symbol: str | None
    scale: int = 1
    divisor: int = 1
    offset: int = 0


def parse_axis(axis: str | int) -> Axis:
    """Return the dimension that an entry of ``axes`` means."""
    if isinstance(axis, int):
        return Axis(None, offset=axis)
    match = _AXIS.fullmatch(axis)
    assert match, f"Bug: axis {axis!r} of an operator cannot be parsed"
    scale, symbol, divisor, less = match.groups()
    return Axis(symbol, int(scale or 1), int(divisor or 1), -int(less or 0))


def _form(spec: OperatorSpec, variant: str = "", **changed: FormValue) -> Form:
    inputs, outputs = (
        [changed.pop(v.name, FormValue(v.name, v.axes, v.dtype)) for v in values]
        for values in (spec.inputs, spec.outputs)
    )
    inputs += changed.values()
    return Form(op_type=spec.op_type, variant=variant, inputs=tuple(inputs), outputs=tuple(outputs))


def _quantised(variant: str, dtype: str, *, packed: str = "", group: int | None = None) -> Form:
    known = {v.name: v for v in (*SPARSE_MOE.inputs, *SPARSE_MOE.optional_inputs)}
    changed = {}
    for name in ("gate_up", "down"):
        *rows, columns = known[name].axes
        scales = known[f"{name}_scales"]
        groups = (f"{columns}/{group}",) if group else ()
        changed[name] = FormValue(name, (*rows, f"{columns}{packed}"), dtype)
        changed[scales.name] = FormValue(scales.name, (*scales.axes, *groups), scales.dtype)
    return _form(SPARSE_MOE, variant, **changed)


FORMS = (
    _form(SELECTIVE_SCAN),
    _form(SPARSE_MOE, "none"),
    _quantised("int8", "int8"),
    _quantised("int4", "packed", packed="/2", group=GROUP),
    _form(CAUSAL_CONV),
    _form(
        CAUSAL_CONV,
        "channels_last",
        # a row may be wider than the convolution, which takes its first half
        input=FormValue("input", ("batch", "seq_len", "input_row"), "T"),
        output=FormValue("output", ("batch", "seq_len", "d_inner"), "T"),
    ),
    _form(CACHED_ATTENTION),
    _form(MAMBA_SCAN),
)
"""Every form, by operator. Formats of quantised experts: `kernels/sparse_moe_formats.py`."""
