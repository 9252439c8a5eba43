"""A session on disk: one JSON file and two safetensors files, for the bundle that made them.

    session.json              text, images, checkpoints and history; hash of the bundle and of the files below
    state.safetensors         keys and values up to the last position, convolution and recurrent states
    checkpoints.safetensors   convolution and recurrent states of each checkpoint

Pixels are not stored: images from files are stored as paths, images from memory not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longllava_trt.core.digests import FileHasher
from longllava_trt.core.errors import InputError
from longllava_trt.core.manifest import MANIFEST_FILE
from longllava_trt.core.publish import atomic_directory
from longllava_trt.core.safetensors_writer import content_of, layout_safetensors, write_safetensors
from longllava_trt.models.image_policy import TileGrid
from longllava_trt.runtime.backends.base import StateSnapshot
from longllava_trt.runtime.content import (
    RememberedTurn,
    SequenceContent,
    SequenceImage,
    SequenceSnapshot,
)
from longllava_trt.runtime.inputs.images import ImageInput
from longllava_trt.runtime.inputs.media import MediaOptions
from longllava_trt.runtime.runner import Runner
from longllava_trt.runtime.sequence import MultimodalSequence

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FORMAT_VERSION", "SESSION_FILE", "read_session", "write_session"]

FORMAT_VERSION = 1
"""Version of the format; raised when older sessions can no longer be read."""

SESSION_FILE = "session.json"
_STATE_FILE = "state.safetensors"
_CHECKPOINTS_FILE = "checkpoints.safetensors"

Tensors = Mapping[str, "NDArray[Any]"]


def write_session(
    sequence: MultimodalSequence, media: MediaOptions, folder: Path, *, overwrite: bool
) -> None:
    """Write a session; see `Session.save`."""
    state, content = sequence.state, sequence.content
    with atomic_directory(folder, overwrite=overwrite, marker=SESSION_FILE) as staging:
        _write_tensors(staging / _STATE_FILE, state.state_dict())
        _write_tensors(staging / _CHECKPOINTS_FILE, _checkpoint_tensors(content))
        document = {
            "format_version": FORMAT_VERSION,
            "bundle": _bundle_digest(sequence.runner),
            "num_positions": content.state.past_len,
            "checkpoint_every": sequence.checkpoint_every,
            "media": asdict(media),
            "prompt_format": sequence.runner.chat.name,
            "said": content.fed_text,
            "pending": content.pending,
            "images": [_image_to_json(image) for image in content.images],
            "checkpoints": [_checkpoint_to_json(mark) for mark in content.checkpoints],
            "turns": [turn._asdict() for turn in content.turns],
            "files": _digests(staging),
        }
        text = json.dumps(document, ensure_ascii=False, indent=1)
        (staging / SESSION_FILE).write_text(text + "\n", encoding="utf-8")


def read_session(runner: Runner, folder: Path) -> tuple[MultimodalSequence, MediaOptions]:
    """Read a session; see `LongLLaVA.load_session`."""
    path = folder / SESSION_FILE
    if not path.is_file():
        raise InputError(f"{folder}: not a session, it has no {SESSION_FILE}; save one first")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        _check_fits(raw, runner, folder)
        return _sequence_from(raw, runner, folder), MediaOptions(**raw["media"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise InputError(
            f"{path}: damaged ({type(err).__name__}: {err}); show the images again"
        ) from err


def _check_fits(raw: Mapping[str, Any], runner: Runner, folder: Path) -> None:
    """Raise an error for a session of another version, bundle or size, before reading large files."""
    if raw["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{folder}: session format must be {FORMAT_VERSION}, got {raw['format_version']}; "
            "show the images again"
        )
    if raw["bundle"] != _bundle_digest(runner):
        raise InputError(
            f"{folder}: was made with another bundle than {runner.bundle}, or with one that has been "
            "exported again; name that bundle, or show the images again"
        )
    # older sessions are of models with one format
    prompt_format = raw.get("prompt_format", runner.chat.name)
    if prompt_format != runner.chat.name:
        raise InputError(
            f"{folder}: was made with --prompt-format {prompt_format}, this model runs with {runner.chat.name}; name that one, "
            "or show the images again"
        )
    limit = runner.capacity
    if raw["num_positions"] > limit:
        raise InputError(
            f"{folder}: holds {raw['num_positions']} positions, the cache has {limit}; "
            f"{runner.more_capacity}"
        )
    found = _digests(folder)
    wrong = [name for name, digest in raw["files"].items() if found.get(name) != digest]
    if wrong or not raw["files"]:
        raise InputError(
            f"{folder}: missing, or changed since they were saved: {', '.join(wrong)}; "
            "show the images again"
        )


def _sequence_from(raw: Mapping[str, Any], runner: Runner, folder: Path) -> MultimodalSequence:
    def content(state: StateSnapshot) -> SequenceContent:
        return SequenceContent(
            state,
            tuple(_image_from_json(image) for image in raw["images"]),
            raw["said"],
            raw["pending"],
            _checkpoints_from(raw["checkpoints"], folder),
            tuple(RememberedTurn(**turn) for turn in raw["turns"]),
        )

    return MultimodalSequence.loaded(
        runner,
        raw["num_positions"],
        _read_tensors(folder / _STATE_FILE),
        content,
        checkpoint_every=raw["checkpoint_every"],
    )


def _checkpoint_to_json(mark: SequenceSnapshot) -> dict[str, Any]:
    return {
        "state": mark.state.past_len,
        "num_images": mark.num_images,
        "said": mark.fed_text,
        "pending": mark.pending,
    }


def _checkpoint_tensors(content: SequenceContent) -> dict[str, NDArray[Any]]:
    return {
        f"{number}.{name}": array
        for number, mark in enumerate(content.checkpoints)
        for name, array in mark.state.recurrent.items()
    }


def _checkpoints_from(raw: list[dict[str, Any]], folder: Path) -> tuple[SequenceSnapshot, ...]:
    arrays: list[dict[str, NDArray[Any]]] = [{} for _ in raw]
    for key, array in _read_tensors(folder / _CHECKPOINTS_FILE):
        number, _, name = key.partition(".")
        arrays[int(number)][name] = array
    return tuple(
        SequenceSnapshot(
            StateSnapshot(mark["state"], recurrent),
            mark["num_images"],
            # for a short time, files were written with the second name
            mark["said"] if "said" in mark else mark["fed_text"],
            mark["pending"],
        )
        for mark, recurrent in zip(raw, arrays, strict=True)
    )


def _image_to_json(image: SequenceImage) -> dict[str, Any]:
    source = image.shown.source
    # absolute, so that the session can be loaded from any folder
    kept = str(Path(source).absolute()) if isinstance(source, str | Path) else None
    return {"before": image.before, **asdict(replace(image.shown, source=kept))}


def _image_from_json(raw: Mapping[str, Any]) -> SequenceImage:
    fields = dict(raw)
    before = fields.pop("before")
    grid, stamp, size = fields.pop("grid"), fields.pop("stamp"), fields.pop("size", None)
    shown = ImageInput(
        **fields,
        grid=TileGrid(*grid) if grid else None,
        stamp=tuple(stamp) if stamp else None,
        size=tuple(size) if size else None,
    )
    return SequenceImage(shown, before)


def _bundle_digest(runner: Runner) -> str:
    """Return the hash of the manifest, which has the hashes of all other files."""
    return hashlib.sha256((runner.bundle / MANIFEST_FILE).read_bytes()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    paths = [path for name in (_STATE_FILE, _CHECKPOINTS_FILE) if (path := folder / name).is_file()]
    with FileHasher() as hasher:
        for path in paths:
            hasher.start(path)
        return {path.name: hasher.digest(path) for path in paths}


def _write_tensors(path: Path, tensors: Tensors) -> None:
    """Write tensors one after another; at most one is copied at a time.

    The safetensors package would need all of them in memory.
    """
    described = {name: (array.shape, array.dtype.name) for name, array in tensors.items()}
    layout = layout_safetensors(path.name, described)
    write_safetensors(path, layout, map(content_of, tensors.values()))


def _read_tensors(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield tensors by name, one in memory at a time."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            yield name, file.get_tensor(name)
