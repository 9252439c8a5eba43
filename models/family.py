"""A family of models for the rest of the code: a reader of its config.json, and its tensor names.

A family is one folder below `models/`, and one line in `registry.py`. Nothing outside it knows its
name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.image_policy import ImagePolicy
from longllava_trt.models.spec import DecoderSpec, ModelSpec

__all__ = [
    "CheckpointFormat",
    "ModelFamily",
    "ReadChat",
    "ReadConfig",
    "ReadDecoder",
    "Renaming",
    "StoredTensor",
    "rename",
    "stacked_names",
]

Renaming = tuple[tuple[re.Pattern[str], str], ...]
"""Patterns and what replaces them, in the order in which they are tried."""


class ReadConfig(Protocol):
    """Reader of a checkpoint's config.json."""

    def __call__(
        self, folder: Path, *, vision_tower: Path | None = None, ignored_keys: Iterable[str] = ()
    ) -> ModelSpec:
        """Return the model, or raise `ConfigError` with everything that is wrong.

        Args:
            folder: Checkpoint or bundle.
            vision_tower: Folder whose config.json describes the tower, in place of what the
                checkpoint says.
            ignored_keys: Keys of config.json that the family does not know and the user says do not
                matter.
        """


class ReadChat(Protocol):
    """Reader of the chat format of one checkpoint or bundle."""

    def __call__(self, folder: Path, prompt_format: str | None = None) -> ChatFormat:
        """Return the format, or raise `ConfigError`; `InputError` if there is none of that name.

        Args:
            folder: Checkpoint or bundle.
            prompt_format: Name of another format than the checkpoint's own.
        """


class ReadDecoder(Protocol):
    """Reader of the decoder alone; for a bundle, whose tower's own config.json may be elsewhere."""

    def __call__(self, folder: Path, *, ignored_keys: Iterable[str] = ()) -> DecoderSpec:
        """Return the decoder, or raise `ConfigError`."""


class StoredTensor(NamedTuple):
    """One tensor of a checkpoint's file."""

    paths: tuple[str, ...]
    """Parameters in it, in storage order; more than one where experts are stacked."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFormat:
    """A format in which checkpoints of a family are published."""

    config_files: Callable[[ModelSpec, str], dict[str, str]]
    """Texts of a model's JSON files, for a saved dtype, by path; `InputError` if the format cannot say what the model
    is."""
    stored: Callable[[ModelSpec], dict[str, StoredTensor]] | None = None
    """Tensors of a model's files by key; by default each parameter under its canonical name."""
    added_tokens: Callable[[ModelSpec], Mapping[str, int]] | None = None
    """Tokens that this format adds to the tokenizer for images, with their ids; by default none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """A family of models."""

    model_type: str
    """Its word in config.json."""
    title: str
    """Its name for people."""
    other_model_types: tuple[str, ...] = ()
    """Further words in config.json that mean this family, in other formats or with other decoders."""
    read_config: ReadConfig
    read_decoder: ReadDecoder
    tensor_name: Callable[[str], str]
    """The checkpoint's name of a parameter by its path (`parameters.py`), or of a path's prefix."""
    canonical_name: Callable[[str], str]
    """The checkpoint's name of a tensor, by any name under which a file may hold it."""
    stored_parts: Callable[[str, int], tuple[str, ...]]
    """Canonical names of the equal parts that one stored tensor holds, in storage order; by its key and the length of
    its first axis."""
    is_tolerated: Callable[[str], bool]
    """Whether a key may be in a file without meaning."""
    formats: Mapping[str, CheckpointFormat]
    """Formats of its checkpoints by name, to write synthetic ones; the first is the usual one."""
    chat: ChatFormat
    """Strings of its prompts; of most of its checkpoints, if ``read_chat`` is given."""
    image_policy: ImagePolicy | None = None
    """How stills in high resolution are cut; None where `high_resolution` means nothing."""
    presets: Mapping[str, ModelSpec] = field(default_factory=dict)
    """Sizes of synthetic checkpoints."""
    published_presets: frozenset[str] = frozenset()
    """Presets that are too large to be filled with random numbers by accident."""
    trained_context: int | None = None
    """Positions of prompt and answer together that its models were trained for; None: what config.json says."""
    read_chat: ReadChat | None = None
    """The format of each checkpoint, in a family whose checkpoints differ in it."""
    positions_around_image: int = 0
    """Positions of the markers around an image that stands alone."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """All words in config.json that mean this family."""
        return (self.model_type, *self.other_model_types)

    @property
    def usual_format(self) -> CheckpointFormat:
        """The format in which its checkpoints are usually published."""
        return next(iter(self.formats.values()))


def rename(name: str, renaming: Renaming) -> str:
    """Apply every pattern that fits, one after another."""
    for pattern, replacement in renaming:
        name = pattern.sub(replacement, name)
    return name


def stacked_names(prefix: str, kinds: str, num_experts: int) -> tuple[str, ...]:
    """Return the names of the matrices that one tensor of all experts holds, in storage order.

    Args:
        prefix: Beginning of the names, before an expert's number.
        kinds: `gate_up`, whose experts have gate's rows before up's, or `down`.
        num_experts: Length of the tensor's first axis.
    """
    return tuple(
        f"{prefix}{expert}.{kind}_proj.weight"
        for expert in range(num_experts)
        for kind in kinds.split("_")
    )
