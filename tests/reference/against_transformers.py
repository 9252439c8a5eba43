"""Models of transformers with random weights, saved by transformers and read by us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.model import LongLLaVA
from tests.reference.conftest import randomise

__all__ = ["IMAGE_TOKEN", "VISION", "llava_config", "prompt", "relative_error", "saved_and_read"]

IMAGE_TOKEN = 96
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
_TEXT = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "eos_token_id": None,
}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest magnitude expected."""
    return float((actual - expected).abs().max() / expected.abs().max())


def llava_config(kind: str, text: dict[str, Any], vision: dict[str, Any], **keys: Any) -> Any:
    """Return a config of transformers' `llava` or `llava_next`.

    Args:
        kind: Its model_type.
        text: What differs from a small Llama.
        vision: What differs from a small tower.
        keys: Further keys.
    """
    import transformers

    decoder = transformers.MistralConfig if text.get("sliding_window", 0) is None else transformers.LlamaConfig  # fmt: skip
    own: type = transformers.LlavaNextConfig if kind == "llava_next" else transformers.LlavaConfig
    return own(
        text_config=decoder(**{**_TEXT, **text}),
        vision_config=transformers.CLIPVisionConfig(**{**VISION, **vision}),
        image_token_index=IMAGE_TOKEN,
        attn_implementation="eager",
        **keys,
    )


def saved_and_read(model: Any, folder: Path) -> LongLLaVA:
    """Give a model of transformers random weights, let it write its checkpoint, and read that."""
    model.eval().requires_grad_(False)
    randomise(model)
    model.save_pretrained(folder)
    return load_model(folder)


def prompt(counts: list[int]) -> Tensor:
    """Return ids with text around images of these numbers of positions. [1, length], int64."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (7,), generator=generator)
    for count in counts:
        text = torch.randint(3, 90, (5,), generator=generator)
        ids = torch.cat([ids, torch.full((count,), IMAGE_TOKEN), text])
    return ids[None]
