"""Nodes between x_proj and out_proj of a Mamba layer become one operator of ours.

TensorRT would run each of three norms, dt's projection and our scan as kernels of their own, which read and write some
hundred values of a token each. The bundle's graph keeps the standard nodes, which any runtime knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from longllava_trt.core.errors import ExportError
from longllava_trt.export.engine.nodes import drop_unused, split_halves
from longllava_trt.plugins_trt.spec import MAMBA_SCAN, SELECTIVE_SCAN

__all__ = ["fuse_scans"]

_NORM_DEFAULTS = {"axis": -1, "epsilon": 1e-5, "stash_type": TensorProto.FLOAT}
_LAST_AXES = (-1, 2)
"""Of [batch, seq_len, columns]."""


@dataclass(frozen=True, slots=True)
class _Site:
    """One scan, and what lies before it."""

    scan: Mapping[str, str]
    """Names of what it takes."""
    projected: str
    """Result of x_proj."""
    norms: Sequence[onnx.NodeProto]
    """Those of dt, B and C."""
    dt_proj_weight: str
    xz: str
    eps: float


def fuse_scans(graph: onnx.GraphProto) -> None:
    """Put `MambaScan` in the place of each SelectiveScan, and of the norms and dt's projection before it.

    Args:
        graph: As exported; changed in place.

    Raises:
        ExportError: If something else lies before a scan.
    """
    made = {name: node for node in graph.node for name in node.output}
    places = [
        place for place, node in enumerate(graph.node) if node.op_type == SELECTIVE_SCAN.op_type
    ]
    for place in places:
        node = graph.node[place]
        site = _find_site(graph.name, node, made)
        node.CopyFrom(_fused(site, node))
    if places:
        drop_unused(graph)


def _find_site(stage: str, node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto]) -> _Site:
    scan = dict(zip(SELECTIVE_SCAN.input_names, node.input, strict=True))
    product, xz = made.get(scan["dt"]), split_halves(made.get(scan["z"]))
    turn = made.get(product.input[1]) if product is not None and len(product.input) > 1 else None
    low = product.input[0] if product is not None and product.input else ""
    norms = [made.get(name) for name in (low, scan["B"], scan["C"])]
    problems = []
    if product is None or product.op_type != "MatMul" or not _turns(turn):
        problems.append("dt must be a product with a transposed weight")
    problems += _norm_problems(norms, made)
    if xz is None or xz.output[1] != scan["z"]:
        problems.append("the gate must be the second half of a tensor")
    found = [norm for norm in norms if norm is not None]
    if problems or turn is None or xz is None:
        raise ExportError(
            f"{stage}: scan '{node.output[0]}' cannot be {MAMBA_SCAN.op_type}: {'; '.join(problems)}; "
            "export the bundle again"
        )
    return _Site(
        scan=scan,
        projected=made[found[0].input[0]].input[0],
        norms=found,
        dt_proj_weight=turn.input[0],
        xz=xz.input[0],
        eps=_meaning(found[0])["epsilon"],
    )


def _norm_problems(
    norms: Sequence[onnx.NodeProto | None], made: Mapping[str, onnx.NodeProto]
) -> Iterator[str]:
    """Yield what keeps three norms from being those of dt, B and C, in this order."""
    found = [norm for norm in norms if norm is not None and norm.op_type == "RMSNormalization"]
    if len(found) != 3:
        yield "dt, B and C must be results of RMSNormalization"
        return
    parts = made.get(found[0].input[0])
    taken = [norm.input[0] for norm in found]
    if parts is None or parts.op_type != "Split" or list(parts.output) != taken:
        yield "their norms must take the parts of one tensor in a row"
    elif helper.get_node_attr_value(parts, "axis") not in _LAST_AXES:
        yield "these must be columns"
    meanings = [_meaning(norm) for norm in found]
    wanted = {**_NORM_DEFAULTS, "epsilon": meanings[0]["epsilon"]}
    if any(
        {**meaning, "axis": -1} != wanted or meaning["axis"] not in _LAST_AXES
        for meaning in meanings
    ):
        yield f"their norms must be of columns, in float32, with one epsilon, got {meanings}"


def _meaning(norm: onnx.NodeProto) -> dict[str, float]:
    return _NORM_DEFAULTS | {a.name: helper.get_attribute_value(a) for a in norm.attribute}


def _turns(node: onnx.NodeProto | None) -> bool:
    """Tell whether a node transposes a matrix."""
    return (
        node is not None
        and node.op_type == "Transpose"
        and helper.get_node_attr_value(node, "perm") == [1, 0]
    )


def _fused(site: _Site, node: onnx.NodeProto) -> onnx.NodeProto:
    taken = dict(site.scan) | {"projected": site.projected, "xz": site.xz}
    taken["dt_proj_weight"] = site.dt_proj_weight
    for name, norm in zip(("dt", "b", "c"), site.norms, strict=True):
        taken[f"{name}_norm_weight"] = norm.input[1]
    return helper.make_node(
        MAMBA_SCAN.op_type,
        [taken[name] for name in MAMBA_SCAN.input_names],
        list(node.output),
        domain=MAMBA_SCAN.domain,
        eps=site.eps,
    )
