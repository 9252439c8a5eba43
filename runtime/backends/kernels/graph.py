"""A decode step as a CUDA graph: captured once, then launched as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from longllava_trt.runtime.backends.kernels.device import DeviceStream

__all__ = ["CapturedStep"]


class CapturedStep:
    """A captured step. Every kernel that it launches must have run before; capture runs nothing.

    Args:
        launch: Launches the step on embeddings and returns its logits [slots, vocab_size], float32.
        like: Embeddings of the step's shape and dtype. [slots, 1, hidden_size].
        stream: Stream that is captured.
        memory: Pool that graphs share, from `torch.cuda.graph_pool_handle`: only one graph may be
            in use at a time.
    """

    def __init__(
        self,
        launch: Callable[[torch.Tensor], torch.Tensor],
        like: torch.Tensor,
        *,
        stream: DeviceStream,
        memory: Any,
    ) -> None:
        self._inputs_embeds = torch.zeros_like(like)
        self._graph = torch.cuda.CUDAGraph()
        # only this thread's calls may break the capture: another thread may be encoding images
        with torch.cuda.graph(
            self._graph, pool=memory, stream=stream.cuda, capture_error_mode="thread_local"
        ):
            self._logits = launch(self._inputs_embeds)

    def __call__(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Launch the step.

        Args:
            inputs_embeds: As ``like``.

        Returns:
            Logits [slots, vocab_size], float32; the next launch overwrites them.
        """
        self._inputs_embeds.copy_(inputs_embeds)
        self._graph.replay()
        return self._logits
