"""Synthetic checkpoints in the published file formats: seeded random weights, or sparse files.

Random weights give a model without meaning but with usual numbers: activations stay near one, the
router has preferences, images and distant tokens change the next token, and greedy decoding neither
stops at once nor repeats one token. Sparse files take no disk space, so that the published sizes
fit on any disk. Knows nothing about PyTorch.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from longllava_trt.core.dtypes import DTYPES, FLOAT_NAMES
from longllava_trt.core.errors import InputError
from longllava_trt.core.publish import atomic_directory
from longllava_trt.core.safetensors_writer import (
    PYTORCH,
    content_of,
    layout_safetensors,
    write_safetensors,
)
from longllava_trt.models.checkpoint import INDEX_FILE
from longllava_trt.models.family import CheckpointFormat, ModelFamily, StoredTensor
from longllava_trt.models.registry import family_of
from longllava_trt.models.spec import ModelSpec
from longllava_trt.models.tensors import expected_tensors, stored_tensors
from longllava_trt.reference.synthetic.presets import preset_config
from longllava_trt.reference.synthetic.tokenizer import TEXT_VOCABULARY, tokenizer_files
from longllava_trt.reference.synthetic.weights import RandomWeights

__all__ = ["write_checkpoint"]

Tensors = dict[str, StoredTensor]

_SHARD_BYTES = 256 * 2**20
_PUBLISHED_SHARD_BYTES = 5 * 10**9
"""Shard size that gives the published number of shards: 4 for the 9B, 22 for the 53B."""


def write_checkpoint(  # noqa: PLR0913 - the options of the command line, one to one
    folder: Path,
    *,
    preset: str,
    checkpoint_format: str | None = None,
    seed: int = 0,
    dtype: str | None = None,
    layers: int | None = None,
    sparse: bool = False,
    shard_bytes: int | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a synthetic checkpoint; the folder appears whole or not at all.

    Args:
        folder: Target; must not exist or be empty.
        preset: One of `preset_names()`.
        checkpoint_format: Format of the files, if the preset's family has several; the weights are
            the same in all.
        seed: Not negative. The same seed gives the same bytes.
        dtype: Dtype of every tensor: float32, float16 or bfloat16; by default the preset's own.
        layers: Write only this number of decoder layers, from the first.
        sparse: Write sparse files, whose weights take no disk space and read as zeros.
        shard_bytes: Largest shard, unless one tensor is larger; there are always two shards or
            more. By default the published size for published presets, and less for others.
        overwrite: Replace a checkpoint in the folder.

    Returns:
        The files written.

    Raises:
        InputError: If an argument is not allowed, the folder is not empty or cannot be written, or
            the disk has too little space for the weights.
    """
    config = preset_config(preset, layers)
    family = family_of(config)
    files = _find_format(family, checkpoint_format, preset)
    is_published = preset in family.published_presets
    dtype = dtype or config.torch_dtype
    if shard_bytes is None:
        shard_bytes = _PUBLISHED_SHARD_BYTES if is_published else _SHARD_BYTES
    if dtype not in FLOAT_NAMES:
        raise InputError(f"synth: dtype must be one of {', '.join(FLOAT_NAMES)}, got {dtype!r}")
    if seed < 0 or shard_bytes < 1:
        raise InputError(
            f"synth: seed must be >= 0 and shard_bytes >= 1, got {seed} and {shard_bytes}"
        )
    if not sparse:
        _check_room(folder, config, dtype, everything=is_published and layers is None)
    with atomic_directory(folder, overwrite=overwrite, marker=INDEX_FILE) as staging:
        vocabulary = min(config.decoder.vocab_size, TEXT_VOCABULARY)
        added = files.added_tokens(config) if files.added_tokens is not None else {}
        begins = family.chat.begins_with_bos
        texts = files.config_files(config, dtype)
        texts |= tokenizer_files(vocabulary, added, adds_beginning=begins)
        for name, text in texts.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text(text, encoding="utf-8")
        stored = stored_tensors(config, checkpoint_format)
        shards = _plan_shards(stored, DTYPES[dtype].itemsize, shard_bytes)
        source = None if sparse else RandomWeights(config, seed)
        for name, tensors in shards.items():
            _write_shard(staging / name, tensors, dtype, source)
        _write_index(staging, shards, dtype)
        names = sorted(p.relative_to(staging) for p in staging.rglob("*") if p.is_file())
    return [folder / name for name in names]


def _find_format(family: ModelFamily, name: str | None, preset: str) -> CheckpointFormat:
    if name is None:
        return family.usual_format
    if name not in family.formats:
        raise InputError(
            f"synth: format of preset {preset} must be one of {', '.join(family.formats)}, got {name!r}"
        )
    return family.formats[name]


def _check_room(folder: Path, config: ModelSpec, dtype: str, *, everything: bool) -> None:
    """Raise an error for a published size without `layers`, or for more weights than disk space."""
    nbytes = DTYPES[dtype].itemsize * sum(map(math.prod, expected_tensors(config).values()))
    size, layers = f"{nbytes / 1e9:.1f} GB", config.decoder.num_layers
    if everything:
        raise InputError(
            f"synth: this preset would write {nbytes} bytes ({size}) of random weights; pass "
            "--sparse for files of that size that take no disk, --layers N for its first N layers, "
            f"or --layers {layers} to write them all"
        )
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if nbytes > free:
        raise InputError(
            f"synth: {layers} layers would write {nbytes} bytes ({size}), but {place} has "
            f"{free / 1e9:.1f} GB free; pass a smaller --layers, or --sparse for files that take no "
            "disk"
        )


def _plan_shards(stored: Tensors, itemsize: int, shard_bytes: int) -> dict[str, Tensors]:
    """Return the tensors of each shard by file name: in the model's order, at least two shards."""
    total = itemsize * sum(math.prod(tensor.shape) for tensor in stored.values())
    limit = min(shard_bytes, math.ceil(total / 2))
    shards: list[Tensors] = [{}]
    room = limit
    for key, tensor in stored.items():
        nbytes = itemsize * math.prod(tensor.shape)
        if nbytes > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][key] = tensor
        room -= nbytes
    return {
        f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)
    }


def _write_shard(path: Path, stored: Tensors, dtype: str, source: RandomWeights | None) -> None:
    """Write one shard with one tensor in memory at a time; a sparse file without a source."""
    tensors = {key: (tensor.shape, dtype) for key, tensor in stored.items()}
    layout = layout_safetensors(path.name, tensors, metadata=PYTORCH)
    if source is None:
        write_safetensors(path, layout, None)
        return
    drawn = (source.draw(tensor) for tensor in stored.values())
    write_safetensors(path, layout, (content_of(t.astype(DTYPES[dtype].numpy)) for t in drawn))


def _write_index(folder: Path, shards: dict[str, Tensors], dtype: str) -> None:
    shapes = [tensor.shape for tensors in shards.values() for tensor in tensors.values()]
    weight_map = {key: name for name, tensors in shards.items() for key in tensors}
    index = {
        "metadata": {"total_size": sum(map(math.prod, shapes)) * DTYPES[dtype].itemsize},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
