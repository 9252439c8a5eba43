"""Values of a synthetic checkpoint's tensors, each from its own generator.

The generator's seed comes from the seed and the tensor's name, so no tensor depends on another's
shape or on their order. Mamba's step sizes and decays are initialised as in the Mamba paper's code;
the gains were chosen by looking at activations and greedy tokens.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from longllava_trt.models.family import StoredTensor
from longllava_trt.models.parameters import EMBEDDING, HEAD, parameter_shapes
from longllava_trt.models.spec import ModelSpec
from longllava_trt.models.tensors import tensor_names
from longllava_trt.reference.synthetic.tokenizer import BYTE_IDS, SPECIAL_TOKENS, TEXT_VOCABULARY

__all__ = ["RandomWeights", "draw_tensor"]

Array = npt.NDArray[np.float32]

_GAINS = {
    HEAD: 3.0,  # logits spread by about 3
    ".router.weight": 2.0,  # clear preferences, different for different tokens
    # attention selects positions instead of averaging over them
    ".attention.q_proj.weight": 2.0,
    ".self_attn.q_proj.weight": 2.0,  # the vision tower's
}
_BYTE_SHARE = 0.3
_DT_RANGE = (1e-3, 1e-1)


class RandomWeights:
    """Values of a checkpoint's tensors; the same in every format of the files.

    Args:
        spec: The model.
        seed: Seed of the checkpoint.
    """

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        self._shapes, self._names = parameter_shapes(spec), tensor_names(spec)
        self._tied, self._seed = spec.decoder.tie_embeddings, seed

    def draw(self, tensor: StoredTensor) -> Array:
        """Return a stored tensor, float32, with its parts one after another."""
        parts = [self._draw(path) for path in tensor.paths]
        return parts[0] if len(parts) == 1 else np.concatenate(parts).reshape(tensor.shape)

    def _draw(self, path: str) -> Array:
        # a table that is the head too is drawn as the head: its scores decide what is generated
        drawn_as = HEAD if path == EMBEDDING and self._tied else path
        return draw_tensor(drawn_as, self._shapes[path], name=self._names[path], seed=self._seed)


def draw_tensor(path: str, shape: tuple[int, ...], *, name: str, seed: int) -> Array:
    """Draw one tensor.

    Args:
        path: Path of the parameter; selects the distribution.
        shape: Shape of the tensor.
        name: Name in the checkpoint; with the seed, it selects the numbers.
        seed: Seed of the checkpoint.

    Returns:
        Row-major array of that shape, float32.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
    if path.endswith("mamba.dt_proj.bias"):
        return _step_size_bias(rng.random(shape))
    noise = rng.standard_normal(shape, dtype=np.float32)
    if path.endswith("mamba.A_log"):
        # exactly log(1..d_state) in Mamba; the noise makes channels different
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
    """Return the bias whose softplus is log-uniform over Mamba's range of step sizes.

    Args:
        uniform: Numbers from 0 to 1, of any shape, float64.

    Returns:
        Array of the same shape, float32.
    """
    low, high = np.log(_DT_RANGE)
    step = np.exp(low + uniform * (high - low))
    bias: Array = np.log(np.expm1(step)).astype(np.float32)
    return bias


def _quieten(lm_head: Array) -> Array:
    """Return lm_head [vocab_size, hidden_size], float32, that generates only ids with a text.

    Special tokens and ids without a text get zero rows: their logit is 0, and the best of hundreds
    of other logits is always larger, so decoding never stops by itself. Single bytes get small
    rows, so they are rare, because one byte of several is no character.
    """
    lm_head[: len(SPECIAL_TOKENS)] = 0
    lm_head[TEXT_VOCABULARY:] = 0
    lm_head[BYTE_IDS.start : BYTE_IDS.stop] *= np.float32(_BYTE_SHARE)
    return lm_head
