"""A trained model as a checkpoint in the original's file format and key names, in float16."""

from __future__ import annotations

from pathlib import Path

import torch

from longllava_trt.core.safetensors_writer import (
    PYTORCH,
    content_of,
    layout_safetensors,
    write_safetensors,
)
from longllava_trt.models.checkpoint import SINGLE_FILE
from longllava_trt.models.registry import family_of
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.reference.synthetic.tokenizer import tokenizer_files

__all__ = ["write_tokenizer", "write_trained"]


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write the files of the small tokenizer; the same for everybody."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tokenizer_files(vocab_size).items():
        (folder / name).write_text(text, encoding="utf-8")


def write_trained(folder: Path, model: LongLLaVA) -> None:
    """Write configuration, tokenizer and weights; the weights are rounded to float16."""
    write_tokenizer(folder, model.config.decoder.vocab_size)
    for name, text in (
        family_of(model.config).usual_format.config_files(model.config, "float16").items()
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    weights = sorted(model.named_tensors().items())
    tensors = {name: (tuple(value.shape), "float16") for name, value in weights}
    write_safetensors(
        folder / SINGLE_FILE,
        layout_safetensors(SINGLE_FILE, tensors, metadata=PYTORCH),
        (content_of(value.to(torch.float16).numpy()) for _, value in weights),
    )
