"""Numbers for the tensors of a synthetic checkpoint, each from its own generator.

The generator is seeded by the seed and the tensor's name, so no tensor depends on another's shape or on their order.
The initialisation of Mamba's step sizes and decays is that of the Mamba paper's code; the gains were chosen by looking
at activations and greedy tokens.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from longllava_trt.models.parameters import EMBEDDING, HEAD
from longllava_trt.reference.synthetic.tokenizer import BYTE_IDS, SPECIAL_TOKENS, TEXT_VOCABULARY

__all__ = ["draw_tensor"]

Array = npt.NDArray[np.float32]

_GAINS = {
    HEAD: 3.0,  # logits spread by about 3
    ".router.weight": 2.0,  # experts are preferred clearly, by different tokens differently
    # attention picks positions out instead of averaging them away
    ".attention.q_proj.weight": 2.0,
    ".self_attn.q_proj.weight": 2.0,  # the vision tower's
}
_BYTE_SHARE = 0.3
_DT_RANGE = (1e-3, 1e-1)


def draw_tensor(path: str, shape: tuple[int, ...], *, name: str, seed: int) -> Array:
    """Draw one tensor.

    Args:
        path: Of the parameter; decides the distribution.
        shape: Any.
        name: The checkpoint's; decides the numbers, with the seed.
        seed: Of the checkpoint.

    Returns:
        Row-major, float32.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
    if path.endswith("mamba.dt_proj.bias"):
        return _step_size_bias(rng.random(shape))
    noise = rng.standard_normal(shape, dtype=np.float32)
    if path.endswith("mamba.A_log"):
        # exactly log(1..d_state) in Mamba; the noise makes channels tell apart
        decay: Array = np.log(np.arange(1, shape[-1] + 1, dtype=np.float32))
        return decay + np.float32(0.05) * noise
    if path.endswith((".D", "norm.weight", "norm1.weight", "norm2.weight")):
        return 1 + np.float32(0.1) * noise
    if path.endswith(".bias"):
        return np.float32(0.1) * noise
    if path.endswith(("class_embedding", "position_embedding.weight")):
        return np.float32(0.5) * noise
    fan_in = 1 if path == EMBEDDING else math.prod(shape[1:])
    gain = next((g for suffix, g in _GAINS.items() if path.endswith(suffix)), 1.0)
    weight = np.float32(gain / math.sqrt(fan_in)) * noise
    return _quieten(weight) if path == HEAD else weight


def _step_size_bias(uniform: npt.NDArray[np.float64]) -> Array:
    """Return the bias whose softplus is log-uniform over Mamba's range of step sizes."""
    low, high = np.log(_DT_RANGE)
    step = np.exp(low + uniform * (high - low))
    bias: Array = np.log(np.expm1(step)).astype(np.float32)
    return bias


def _quieten(lm_head: Array) -> Array:
    """Keep special tokens, bare bytes and ids without a text from being generated.

    A zero row has logit 0, which the best of hundreds of others always exceeds, so decoding never stops by itself;
    faint rows make a byte without its neighbours, which is no character, rare.
    """
    lm_head[: len(SPECIAL_TOKENS)] = 0
    lm_head[TEXT_VOCABULARY:] = 0
    lm_head[BYTE_IDS.start : BYTE_IDS.stop] *= np.float32(_BYTE_SHARE)
    return lm_head
