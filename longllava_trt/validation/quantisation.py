"""Level experts: is what the bundle holds the checkpoint's experts, and what does their quantisation change?

The first is judged. The second is measured, between two references that differ in the experts alone: no limit would
be right for every model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from longllava_trt.core.parity import ParityRow, measure
from longllava_trt.core.weight_formats import WEIGHT_FORMATS
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.reference.operators import ExpertWeights, TorchOperators
from longllava_trt.validation.experts import StoredMatrix, stored_matrices
from longllava_trt.validation.generation import GenerationCase
from longllava_trt.validation.layers import LayerCase
from longllava_trt.validation.parity_case import ParityCase
from longllava_trt.validation.stages import StageCase

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["expert_rows"]

_ROUNDING = 1e-4
"""Of a scale: what float32 may add to half of it, and to the largest code."""


class _Routing(TorchOperators):
    """Plain operators that remember where tokens went."""

    def __init__(self) -> None:
        self.chosen: list[Tensor] = []

    def sparse_moe(
        self, x: Tensor, router_logits: Tensor, experts: Sequence[ExpertWeights], *, top_k: int
    ) -> Tensor:
        self.chosen.append(router_logits.topk(top_k, dim=-1).indices.sort(-1).values)
        return super().sparse_moe(x, router_logits, experts, top_k=top_k)


class _Run(NamedTuple):
    """Outputs of one reference for random tokens."""

    hidden_states: dict[str, NDArray[np.float32]]
    """After each layer of the decoder."""
    chosen: list[Tensor]
    """Experts of each token, in ascending order, by routed layer. [tokens, top_k]."""
    logits: NDArray[np.float32]
    """After every position. [seq_len, vocab_size]."""


def expert_rows(subject: ParityCase, *, seed: int, max_new_tokens: int) -> Iterator[ParityRow]:
    """Judge codes and scales, layer by layer; then measure how far the results move."""
    original = subject.original
    assert original is not None, "Bug: only a bundle with quantised experts has this level"
    yield from _stored_rows(subject, original)
    yield from _moved_rows(subject.reference, original, seed=seed)
    tokens, wanted = (
        GenerationCase.of(
            replace(subject, reference=model), images=(), seed=seed, max_new_tokens=max_new_tokens
        ).tokens
        for model in (subject.reference, original)
    )
    same = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tokens, wanted, strict=False))
    )
    yield _counted(
        "experts.moves.tokens", f"the first {same} of {len(wanted)} greedy tokens are the same"
    )


def _moved_rows(quantised: LongLLaVA, original: LongLLaVA, *, seed: int) -> Iterator[ParityRow]:
    """Measure the residual stream after each layer, where each layer's tokens go, and the logits."""
    got, want = (_run(model, seed=seed) for model in (quantised, original))
    for name, state in want.hidden_states.items():
        yield measure(f"experts.moves.{name}", got.hidden_states[name], state)
    layers = original.config.decoder.moe_layers
    for layer, ours, theirs in zip(layers, got.chosen, want.chosen, strict=True):
        same = int((ours == theirs).all(-1).sum())
        name = f"experts.moves.decoder.layers.{layer}.router"
        yield _counted(name, f"the same experts for {same} of {len(theirs)} tokens")
    same = int((got.logits.argmax(-1) == want.logits.argmax(-1)).sum())
    yield replace(
        measure("experts.moves.logits", got.logits, want.logits),
        note=f"the same best token at {same} of {len(want.logits)} positions",
    )


def _counted(name: str, note: str) -> ParityRow:
    return ParityRow(name=name, status="measured", note=note)


def _run(model: LongLLaVA, *, seed: int) -> _Run:
    plain, routing = model.ops, _Routing()
    model.ops = routing
    try:
        layers = LayerCase.of(model, seed=seed)
    finally:
        model.ops = plain
    # the prompt is fed in chunks, and every chunk visits every layer
    count = len(model.config.decoder.moe_layers)
    return _Run(
        hidden_states={n: h for n, h in layers.hidden_states.items() if n.startswith("decoder.")},
        chosen=[torch.cat(routing.chosen[i::count]) for i in range(count)],
        logits=StageCase.of(model, seed=seed).logits,
    )


def _stored_rows(subject: ParityCase, original: LongLLaVA) -> Iterator[ParityRow]:
    """Hold every weight against the checkpoint's: codes are the nearest ones, and no scale is larger than it must be."""
    weights = original.named_tensors()
    quant = subject.manifest.moe_quant
    top = WEIGHT_FORMATS[quant].top_code
    stored = stored_matrices(original, subject.bundle, subject.manifest)
    for layer, matrices in groupby(stored, key=lambda matrix: matrix.layer):
        row = ParityRow(name=f"experts.stored.layers.{layer}", status="passed", note=quant)
        for matrix in matrices:
            moved, slack = _distances(matrix, weights[matrix.name].numpy(), top=top)
            if not moved <= 0.5 + _ROUNDING:
                problem = (
                    f"a weight of {matrix.name} is {moved:.3g} of its scale away, allowed is 0.5"
                )
                row = replace(row, status="failed", problem=problem)
            elif not slack <= _ROUNDING:
                problem = f"a scale of {matrix.name} is off by {slack:.1e} of what its largest weight needs"
                row = replace(row, status="failed", problem=problem)
        yield row


def _distances(
    matrix: StoredMatrix, weights: NDArray[np.float32], *, top: int
) -> tuple[float, float]:
    """Return by how much of its scale the worst weight moved, and by how much of what it should be a scale is off."""
    starts = range(0, weights.shape[1], matrix.group)
    moved, largest = (
        np.maximum.reduceat(np.abs(array).astype(np.float64), starts, axis=1)
        for array in (matrix.values - weights, weights)
    )
    # zeros have no scale of their own
    needed = np.where(largest > 0, largest / top, matrix.scales)
    return float((moved / matrix.scales).max()), float(np.abs(matrix.scales / needed - 1).max())
