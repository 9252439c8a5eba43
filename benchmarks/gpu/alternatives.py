"""Two layers of the 9B's width in PyTorch, compiled, with mamba-ssm's scan, and on our kernels, side by side.

One layer of Mamba and one of attention, each with its feed-forward, with the same random weights: whole layers, not single
operators. Each row has the relative error of its scores against PyTorch in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.compare import attempt
from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.oracles import relative_rms
from benchmarks.gpu.timing import time_ms

if TYPE_CHECKING:
    import torch

    from longllava_trt.models.spec import ModelSpec
    from longllava_trt.reference.model import LongLLaVA
    from longllava_trt.runtime.backends.kernels.decoder import KernelsDecoder
    from longllava_trt.runtime.backends.kernels.decoder_model import Scan

__all__ = ["alternatives", "ours_of", "random_reference", "two_layers"]

_LENGTHS, _DRY_LENGTHS = (1, 4096), (1, 3)
Call = Callable[["torch.Tensor"], "torch.Tensor"]
"""Scores after the last position [1, vocab_size], float32, from embeddings [1, seq_len, hidden_size], T."""


def alternatives(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row an implementation and length of a first chunk; 1 is a decode step's work."""
    import torch

    spec = two_layers("tiny-dense" if context.is_dry else "9b")
    exact = random_reference(spec, device=context.device)
    dtype = torch.float32 if context.is_dry else torch.bfloat16
    with torch.device(context.device):
        plain = type(exact)(spec).to(dtype).eval().requires_grad_(False)
    plain.load_state_dict(exact.state_dict())
    calls = dict(_calls(context, spec, plain))
    for length in _DRY_LENGTHS if context.is_dry else _LENGTHS:
        shape = (1, length, spec.decoder.hidden_size)
        embeds = torch.randn(shape, device=context.device).to(dtype)
        want = _in_pytorch(exact, embeds.float())
        for name, call in calls.items():
            if name == "PyTorch, compiled" and length > 1:
                yield {
                    "case": f"{name}, {length} positions",
                    "value": "not run: its scan is a loop",
                }
                continue
            yield attempt(f"{name}, {length} positions", partial(_row, context, call, embeds, want))


def two_layers(preset: str) -> ModelSpec:
    """Return the decoder of a preset with its fourth and fifth layer alone: Mamba, then attention."""
    from longllava_trt.models.registry import find_preset

    spec = find_preset(preset)
    decoder = replace(spec.decoder, layers=spec.decoder.layers[3:5])
    return replace(spec, decoder=decoder, vision=None, connector=None)


def random_reference(spec: ModelSpec, *, device: str) -> LongLLaVA:
    """Return the reference in float32 with random weights of a trained model's usual sizes."""
    import torch

    from longllava_trt.reference.model import LongLLaVA

    with torch.device(device):
        model = LongLLaVA(spec).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", ".D")):
            parameter.normal_(1, 0.1)
        elif name.endswith("A_log"):
            parameter.uniform_(0, 2)
        elif name.endswith("dt_proj.bias"):
            parameter.uniform_(-5, -3)
        else:
            columns = parameter[0].numel() if parameter.dim() > 1 else parameter.numel()
            parameter.normal_(0, columns**-0.5)
    return model


def ours_of(model: LongLLaVA, spec: ModelSpec, *, scan: Scan | None = None) -> KernelsDecoder:
    """Return our kernels with the weights of a reference that has no routed layer.

    Args:
        model: The reference, on the device and in the dtype of the result.
        spec: Its specification.
        scan: Used in place of our selective scan where a sequence begins.
    """
    import torch

    from longllava_trt.models.contracts import stage_specs
    from longllava_trt.runtime.backends.kernels.decoder import KernelsDecoder
    from longllava_trt.runtime.backends.kernels.decoder_model import DecoderModel
    from longllava_trt.runtime.backends.kernels.device import DeviceStream
    from longllava_trt.runtime.backends.kernels.weight_plan import plan_decoder

    dtype, tensors = str(model.dtype).removeprefix("torch."), model.named_tensors()
    weights = {
        w.name: torch.cat([tensors[part].flatten() for part in w.parts]).view(w.shape)
        for w in plan_decoder(spec, dtype, "none")
    }
    return KernelsDecoder(
        DecoderModel.of(spec.decoder, weights),
        stage_specs(spec, dtype)["decoder"],
        DeviceStream(model.lm_head.weight.device),
        first_scan=scan,
    )


def _calls(context: BenchContext, spec: ModelSpec, plain: LongLLaVA) -> Iterator[tuple[str, Call]]:
    import torch

    eager = partial(_in_pytorch, plain)
    yield "PyTorch", eager
    # dry: no compiler is needed to see that the call is right
    yield (
        "PyTorch, compiled",
        torch.compile(eager, backend="eager" if context.is_dry else "inductor"),
    )
    if context.mamba is not None and not context.is_dry:
        from benchmarks.gpu.mamba import source_scan

        theirs = ours_of(plain, spec, scan=source_scan(context.mamba))
        yield "ours, with mamba-ssm's scan", partial(_on_our_kernels, theirs)
    yield "ours", partial(_on_our_kernels, ours_of(plain, spec))


def _in_pytorch(model: LongLLaVA, embeds: torch.Tensor) -> torch.Tensor:
    import torch

    from longllava_trt.reference.cache import empty_cache

    with torch.no_grad(), torch.device(embeds.device):
        cache = empty_cache(model.config.decoder, dtype=embeds.dtype)
        return model.decode(embeds, cache).logits[:, -1]


def _on_our_kernels(decoder: KernelsDecoder, embeds: torch.Tensor) -> torch.Tensor:
    # with room for the steps that prove a captured one
    state = decoder.new_state(capacity=embeds.shape[1] + 16)
    with decoder.stream.active():
        logits = decoder.feed(embeds, [state])
    if decoder.stream.cuda is not None:
        decoder.stream.cuda.synchronize()
    return logits


def _row(
    context: BenchContext, call: Call, embeds: torch.Tensor, want: torch.Tensor
) -> dict[str, Any]:
    error = relative_rms(call(embeds), want)
    ms = time_ms(lambda _: call(embeds), device=context.device, is_graph=False)
    positions = embeds.shape[1]
    # bfloat16 keeps eight bits; a wrong layer is off by tens of percent
    limit = 1e-4 if context.is_dry else 5e-2
    return {"ok": error < limit, "error": error, "ms": ms, "positions_per_s": 1e3 * positions / ms}
