"""Weights of a traced stage as initializers that refer to the checkpoint's own files.

No weight is written here. Nodes in the graph cast weights of another dtype and stack experts, and
runtimes fold these nodes when they load. Quantised experts have their own files
(`longllava_trt.export.quantisation.quantise`). Files are hard links, so that every tool that reads
ONNX finds them below the bundle; ONNX Runtime refuses symbolic links to files elsewhere.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from longllava_trt.core.dtypes import DTYPES
from longllava_trt.core.errors import InputError
from longllava_trt.core.manifest import WEIGHTS_FOLDER, WeightRecord
from longllava_trt.core.safetensors_header import TensorSource

__all__ = ["WeightsMode", "bind_weights", "bundled_name", "ir_dtype", "place_weight_files"]

logger = logging.getLogger(__name__)

WeightsMode = Literal["auto", "hardlink", "symlink", "copy"]


def bundled_name(source: TensorSource) -> str:
    """Return the path in the bundle of the file that holds a tensor.

    A file from outside the checkpoint, such as a separate vision tower's, also has its folder's
    name.
    """
    parts = [source.file.parent.name] if source.file.is_absolute() else []
    return "/".join([WEIGHTS_FOLDER, *parts, source.file.name])


def place_weight_files(
    checkpoint: Path, sources: Iterable[TensorSource], staging: Path, *, mode: WeightsMode
) -> int:
    """Put the checkpoint's files into the bundle, as links or copies.

    Args:
        checkpoint: Folder that relative sources are in.
        sources: Tensors that the bundle needs.
        staging: Bundle being made.
        mode: `hardlink` and `symlink` copy nothing; `auto` uses the first mode that the file system
            allows.

    Returns:
        Bytes that were copied.

    Raises:
        InputError: If the file system does not allow ``mode``.
    """
    files = {bundled_name(s): (checkpoint / s.file).resolve() for s in sources}
    copied = 0
    for name, original in files.items():
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copied += _place(original, target, mode)
    return copied


def _place(original: Path, target: Path, mode: WeightsMode) -> int:
    # an export that was killed may have placed it
    target.unlink(missing_ok=True)
    if mode == "copy":
        shutil.copyfile(original, target)
        return target.stat().st_size
    try:
        if mode == "symlink":
            target.symlink_to(original)
        else:
            os.link(original, target)
    except OSError as err:
        if mode != "auto":
            raise InputError(
                f"{target.name}: cannot be linked to {original} ({err.strerror}); put the bundle on the "
                "checkpoint's file system, or pass --weights copy"
            ) from err
        target.symlink_to(original)
        logger.warning(
            "%s is a symbolic link, because a hard link could not be made (%s): this project's runtime reads it, "
            "but plain ONNX Runtime will refuse it; --weights copy makes a bundle that stands alone",
            target.name,
            err.strerror,
        )
    return 0


def bind_weights(
    model: ir.Model,
    sources: Mapping[str, TensorSource],
    *,
    derived: Mapping[str, WeightRecord],
    keep_inputs: int,
    dtype: str,
) -> dict[str, WeightRecord]:
    """Turn the weight inputs of a traced stage into initializers with external data.

    Args:
        model: From `trace_stage`; changed in place.
        sources: Position of each weight, by checkpoint name.
        derived: Position of each weight that is not in the checkpoint; it is not cast.
        keep_inputs: Number of leading inputs that stay inputs.
        dtype: Dtype of the graph.

    Returns:
        The weight map of the stage.
    """
    graph = model.graph
    records = {}
    for value in list(graph.inputs[keep_inputs:]):
        assert value.name is not None, "Bug: traced inputs have names"
        name = value.name
        record = derived[name] if name in derived else _record(sources[name], dtype)
        graph.inputs.remove(value)
        stored = value
        if record.transform == "cast":
            stored = _insert_cast(graph, value, stored_dtype=record.dtype, dtype=dtype)
        stored.const_value = ir.ExternalTensor(
            record.file,
            record.offset,
            record.nbytes,
            ir_dtype(record.dtype),
            shape=ir.Shape(record.shape),
            name=name,
        )
        graph.initializers.add(stored)
        records[name] = record
    return records


def _record(source: TensorSource, dtype: str) -> WeightRecord:
    return WeightRecord(
        file=bundled_name(source),
        offset=source.offset,
        nbytes=source.nbytes,
        shape=source.shape,
        dtype=source.dtype,
        transform="none" if source.dtype == dtype else "cast",
    )


def _insert_cast(graph: ir.Graph, value: ir.Value, *, stored_dtype: str, dtype: str) -> ir.Value:
    """Put a Cast after a stored weight; return the stored tensor's value, which gets the name."""
    stored = ir.Value(
        name=value.name, type=ir.TensorType(ir_dtype(stored_dtype)), shape=value.shape
    )
    cast = ir.node("Cast", inputs=[stored], attributes={"to": ir_dtype(dtype)})
    cast.outputs[0].name = f"{value.name}.{dtype}"
    cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    graph.insert_before(graph[0], cast)
    return stored


def ir_dtype(dtype: str) -> ir.DataType:
    """Return ONNX's name of a dtype."""
    return ir.DataType(DTYPES[dtype].onnx)
