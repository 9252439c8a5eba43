"""Position of every tensor of a checkpoint, from the headers of its safetensors files alone.

Accepts one file or shards with an index, under every naming that the family knows, and packed
tensors. Reads no weights and never unpickles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from longllava_trt.core.dtypes import FLOAT_NAMES, FLOATS
from longllava_trt.core.errors import CheckpointError
from longllava_trt.core.safetensors_header import TensorSource, read_header
from longllava_trt.models.family import ModelFamily
from longllava_trt.models.parameters import HEAD, VISION, unused_parameters
from longllava_trt.models.registry import family_of
from longllava_trt.models.spec import ModelSpec
from longllava_trt.models.tensors import expected_tensors

__all__ = [
    "INDEX_FILE",
    "SINGLE_FILE",
    "CheckpointIndex",
    "index_checkpoint",
]

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

_MAX_LISTED = 20
_CONVERSION = (
    "safetensors.torch.save_file({k: v.clone() for f in FILES for k, v in torch.load(f, weights_only=True).items()}, "
    f"'{SINGLE_FILE}')"
)
"""Python expression that makes one safetensors file of pickles."""


@dataclass(frozen=True, slots=True)
class CheckpointIndex:
    """All tensors of a folder."""

    folder: Path
    tensors: Mapping[str, TensorSource]
    """Tensors by canonical name; packed experts one by one."""

    @classmethod
    def open(cls, folder: Path, family: ModelFamily) -> CheckpointIndex:
        """Read the headers of a folder's `model.safetensors`, or of its index and shards.

        Args:
            folder: Checkpoint.
            family: Family that knows the names of the tensors.

        Raises:
            CheckpointError: Lists every file that is missing, damaged, or contradicts the index.
        """
        weight_map = _read_weight_map(folder)
        files = [SINGLE_FILE] if weight_map is None else sorted(set(weight_map.values()))
        problems: list[str] = []
        stored: dict[str, TensorSource] = {}
        for name in files:
            try:
                header = read_header(folder / name)
            except CheckpointError as err:
                problems.append(str(err))
                continue
            if weight_map is not None:
                problems += _shard_problems(name, header, weight_map, earlier=stored)
            stored |= header
        _raise_if(problems, f"{folder}: cannot be used; fetch or convert the checkpoint again")
        return cls(folder, _by_canonical_name(folder, stored, family))


def index_checkpoint(
    folder: Path, spec: ModelSpec, *, vision_tower: Path | None = None
) -> dict[str, TensorSource]:
    """Find exactly the tensors that a model needs.

    Args:
        folder: Checkpoint.
        spec: The model.
        vision_tower: Folder of a CLIP checkpoint with the vision tower, used instead of the
            checkpoint's own copy; its other tensors are ignored.

    Returns:
        Sources by canonical name, in the order of `expected_tensors`; the tower's layers after its
        feature may be absent.

    Raises:
        CheckpointError: Lists the tensors that are missing, extra, of a wrong shape or of a dtype
            that is not supported.
    """
    family = family_of(spec)
    tensors = dict(CheckpointIndex.open(folder, family).tensors)
    place, prefix = str(folder), family.tensor_name(VISION)
    if vision_tower is None and not any(name.startswith(prefix) for name in tensors):
        vision_tower = _tower_beside(folder, spec)
    if vision_tower is not None:
        place += f" with the vision tower of {vision_tower}"
        tensors = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
        home = vision_tower.resolve()
        tensors |= {
            name: replace(source, file=home / source.file)
            for name, source in CheckpointIndex.open(home, family).tensors.items()
            if name.startswith(prefix)
        }
    if spec.decoder.tie_embeddings:
        # transformers ignores a head that is tied, and some files have a copy
        tensors.pop(family.tensor_name(HEAD), None)
    expected = expected_tensors(spec)
    unused = {family.tensor_name(path) for path in unused_parameters(spec)}
    missing = expected.keys() - tensors.keys() - unused
    if missing and missing == {n for n in expected if n.startswith(prefix)} - unused:
        raise CheckpointError(_explain_no_tower(folder, spec))
    _raise_if(
        list(_differences(tensors, expected, missing)),
        f"{place}: tensors are not those that config.json describes; check that both are of the same model",
    )
    return {name: tensors[name] for name in expected if name in tensors}


def _tower_beside(folder: Path, spec: ModelSpec) -> Path | None:
    """Return the folder of the tower that config.json names, if it has weights."""
    home = folder / spec.tower if spec.vision is not None and spec.tower else None
    if home is None or not any((home / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return None
    return home


def _explain_no_tower(folder: Path, spec: ModelSpec) -> str:
    named = f"; config.json names '{spec.tower}'" if spec.tower else ""
    return f"{folder}: has no vision tower among its weights{named}; fetch that and give its folder with --vision-tower"


def _read_weight_map(folder: Path) -> dict[str, str] | None:
    """Return the shard of each key, or None if the folder has the one file `model.safetensors`."""
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists() and index.exists():
        raise CheckpointError(
            f"{folder}: must hold {SINGLE_FILE} or {INDEX_FILE}, got both; remove the stale one"
        )
    if single.exists():
        return None
    if not index.exists():
        raise CheckpointError(_explain_no_weights(folder))
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = list(weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise CheckpointError(
            f"{index}: must be JSON with a 'weight_map' object ({type(err).__name__}: {err}); fetch it again"
        ) from err
    # a name with a folder in it could be any file on the machine
    bad = sorted({repr(f) for f in files if not isinstance(f, str) or Path(f).name != f})
    if bad or not files:
        raise CheckpointError(
            f"{index}: 'weight_map' must map tensors to names of files beside it, "
            f"got {', '.join(bad) or 'none'}; fetch it again"
        )
    return dict(weight_map)


def _explain_no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: must be a checkpoint's folder, but there is none; check the path"
    names = sorted(p.name for p in folder.iterdir())
    shards = [n for n in names if n.endswith(".safetensors")]
    pickles = [n for n in names if n.endswith((".bin", ".pt", ".pth"))]
    expected = f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}"
    if shards:
        return f"{expected}, got {', '.join(shards[:3])} without an index; fetch the index too"
    if pickles:
        return (
            f"{expected}, got {', '.join(pickles[:3])}; only safetensors are read, because unpickling can run code. "
            f"Convert once, where you trust the files: {_CONVERSION} with FILES the list of their paths"
        )
    return f"{expected}, got no weights at all; fetch the checkpoint again"


def _shard_problems(
    name: str,
    header: Mapping[str, TensorSource],
    weight_map: Mapping[str, str],
    *,
    earlier: Mapping[str, TensorSource],
) -> Iterator[str]:
    """Yield the contradictions of a shard to the index and to the shards before it."""
    placed = {key for key, file in weight_map.items() if file == name}
    yield from _listed(
        f"tensor(s) that {INDEX_FILE} places in {name}, which lacks them", placed - header.keys()
    )
    yield from _listed(
        f"tensor(s) in {name} that {INDEX_FILE} does not know", header.keys() - weight_map.keys()
    )
    yield from _listed(
        f"tensor(s) in {name} and in another shard too", header.keys() & earlier.keys()
    )


def _by_canonical_name(
    folder: Path, stored: Mapping[str, TensorSource], family: ModelFamily
) -> dict[str, TensorSource]:
    """Rename stored tensors, and cut packed ones into their parts."""
    tensors: dict[str, TensorSource] = {}
    problems = []
    for key, source in stored.items():
        if family.is_tolerated(key):
            continue
        names = family.stored_parts(key, source.shape[0] if source.shape else 0)
        parts = _cut(source, len(names))
        if not parts:
            problems.append(
                f"'{key}' cannot be cut into experts: its shape is {list(source.shape)}"
            )
        problems += [f"'{key}' is a second copy of '{name}'" for name in names if name in tensors]
        tensors.update(zip(names, parts, strict=False))
    _raise_if(
        problems, f"{folder}: the tensors contradict one another; convert the checkpoint again"
    )
    return tensors


def _cut(source: TensorSource, count: int) -> list[TensorSource]:
    """Cut a tensor [experts, rows, columns] into equal parts; return [] if impossible."""
    if count == 1:
        return [source]
    shape = source.shape
    if len(shape) != 3 or count == 0 or shape[0] * shape[1] % count:
        return []
    nbytes = source.nbytes // count
    part = (shape[0] * shape[1] // count, shape[2])
    return [replace(source.within(i * nbytes, nbytes), shape=part) for i in range(count)]


def _differences(
    tensors: Mapping[str, TensorSource],
    expected: Mapping[str, tuple[int, ...]],
    missing: Iterable[str],
) -> Iterator[str]:
    yield from _listed("missing", missing)
    yield from _listed("left over", tensors.keys() - expected.keys())
    common = sorted(expected.keys() & tensors.keys())
    yield from _listed(
        "misshapen",
        (
            f"{name} must be {list(expected[name])}, got {list(tensors[name].shape)}"
            for name in common
            if tensors[name].shape != expected[name]
        ),
    )
    yield from _listed(
        f"dtype not one of {', '.join(d.safetensors for d in FLOATS)}",
        (
            f"{name} {tensors[name].dtype}"
            for name in common
            if tensors[name].dtype not in FLOAT_NAMES
        ),
    )


def _listed(what: str, items: Iterable[str]) -> Iterator[str]:
    """Yield one line with the number of items and the first of them; nothing if there are none."""
    if items := sorted(items):
        more = f", and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
        yield f"{len(items)} {what}: " + ", ".join(items[:_MAX_LISTED]) + more


def _raise_if(problems: list[str], summary: str) -> None:
    if problems:
        more = [f"and {len(problems) - _MAX_LISTED} more"] if len(problems) > _MAX_LISTED else []
        raise CheckpointError(f"{summary}. " + "; ".join(problems[:_MAX_LISTED] + more))
