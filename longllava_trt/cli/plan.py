"""`longllava-trt plan`: what a model will need of a GPU, before any work."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from longllava_trt.cli.option_fields import FieldOptions
from longllava_trt.cli.options import (
    Subparsers,
    add_verb,
    count,
    format_bytes,
    from_zero,
    print_json,
)
from longllava_trt.core.dtypes import FLOAT_NAMES
from longllava_trt.core.engine_record import EngineRecord

if TYPE_CHECKING:
    from longllava_trt.planning import Plan

__all__ = ["add_parser", "run"]

PLAN = FieldOptions("longllava_trt.planning.estimate", "PlanRequest")
_EXAMPLES = """\
  longllava-trt plan LongLLaVA-53B --gpu a100-80gb                       does it fit?
  longllava-trt plan LongLLaVA-53B --gpu a100-80gb --moe-quant w8a16
  longllava-trt plan LongLLaVA-9B --gpu 48GiB+150TFLOPs+864GB/s --images 300
  longllava-trt plan LongLLaVA-9B --engines bundle/engines/sm80-trtrtx-1.7.1   with what TensorRT says it works in

a folder with config.json alone is enough; 'longllava-trt synth 53b --preset 53b --sparse' makes one.
exit status: 0 it fits; 1 it does not, and the nearest request that does is named.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "plan",
        help_text="predict memory, arithmetic and time on a GPU, and whether it fits",
        description="Predict what a model will need of a GPU: weights, keys and values, states, activations, "
        "arithmetic of every stage, the time that the GPU's published peaks allow, and the most images that fit. "
        "Arithmetic on config.json: no GPU is touched and no weight is read.",
        examples=_EXAMPLES,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="folder with config.json")
    parser.add_argument(
        "--gpu",
        default="a100-80gb",
        metavar="NAME",
        help="a100-80gb, a100-40gb, h100-80gb, h200, rtx-4090, or GiB+TFLOPs+GB/s such as "
        "48GiB+150TFLOPs+864GB/s (default: %(default)s)",
    )
    PLAN.add(
        parser,
        "--images",
        "images",
        type=from_zero,
        metavar="N",
        help="images",
        default_text="1000, or none for a text model",
    )
    PLAN.add(
        parser,
        "--text-tokens",
        "text_tokens",
        type=count,
        metavar="N",
        help="positions of question and answer besides images",
    )
    PLAN.add(parser, "--dtype", "dtype", choices=FLOAT_NAMES, help="arithmetic")
    PLAN.add(
        parser,
        "--moe-quant",
        "moe_quant",
        help="format of routed experts: the dtype, int8 a row, or int4 a group of 128",
    )
    PLAN.add(
        parser,
        "--chunk",
        "chunk",
        type=count,
        metavar="N",
        help="positions of one decoder call",
    )
    PLAN.add(
        parser,
        "--max-context",
        "max_context",
        type=count,
        metavar="N",
        help="positions allowed",
        default_text="as many as the model was trained for",
    )
    PLAN.add(
        parser,
        "--image-size",
        "image_size",
        type=_size_of_image,
        metavar="WxH",
        help="width and height of each image in pixels, where positions depend on them, as in LLaVA-1.6",
        default_text="the vision tower's own",
    )
    parser.add_argument(
        "--vision-tower",
        type=Path,
        metavar="DIR",
        help="CLIP checkpoint that the vision tower comes from (default: the checkpoint's own copy)",
    )
    parser.add_argument(
        "--engines",
        type=Path,
        metavar="DIR",
        help="folder of engines, as BUNDLE/engines/sm80-...: take the memory they work in and their room for keys and "
        "values from engine.json, and the chunk (default: estimate)",
    )
    parser.set_defaults(run=run)


def _size_of_image(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(
            f"expected width and height in pixels, such as 1024x768, got '{text}'"
        )
    return int(width), int(height)


def run(args: argparse.Namespace) -> int:
    """Plan and print; exit status 1 if it does not fit."""
    from longllava_trt.models.registry import load_model_spec
    from longllava_trt.planning import EngineMemory, PlanRequest, find_gpu, make_plan

    record = None if args.engines is None else EngineRecord.load(args.engines)
    config = load_model_spec(args.checkpoint, vision_tower=args.vision_tower)
    request = PlanRequest(**PLAN.values(args))
    if record is not None:
        chunk = record.options.get("chunk", request.chunk)
        request = replace(request, chunk=chunk, engines=EngineMemory.of(record))
    plan = make_plan(config, find_gpu(args.gpu), request)
    if args.json:
        print_json(asdict(plan) | _totals(plan))
    else:
        print("\n".join(_lines(plan)))
    return 0 if plan.fits else 1


def _totals(plan: Plan) -> dict[str, object]:
    return {
        "fits": plan.fits,
        "weights_total_bytes": plan.weights.total,
        "device_total_bytes": plan.device.total,
        "flops_total": plan.flops.total,
    }


def _lines(plan: Plan) -> Iterator[str]:
    request, device, weights, flops = plan.request, plan.device, plan.weights, plan.flops
    yield f"{request.images} images, {plan.tokens} positions, {request.dtype} on {plan.gpu.name}"
    yield ""
    experts = f", of which routed experts {format_bytes(weights.experts)} ({request.moe_quant})"
    yield f"weights        {_size(device.weights)}{experts if weights.experts else ''}"
    room = f", room for {request.engines.capacity} positions" if request.engines else ""
    each = f"{format_bytes(plan.kv_bytes_per_position)} a position"
    if plan.positions_per_image:
        each += f", {format_bytes(plan.kv_bytes_per_image)} an image of {plan.positions_per_image}"
    yield f"keys, values   {_size(device.kv_cache)}, {each}{room}"
    yield f"states         {_size(device.states)}, both sets"
    told = ", as the engines say" if request.engines else ""
    yield f"activations    {_size(device.activations)}, chunks of {request.chunk}{told}"
    yield f"reserve        {_size(device.reserve)}, for the driver; not predicted"
    yield f"on the GPU     {_size(device.total)} of {format_bytes(plan.gpu.memory_bytes)}"
    yield f"on the host    {_size(plan.host_bytes)}, allowed for loading and images in flight"
    yield f"on disk        {_size(plan.disk_bytes)}, links where nothing is quantised"
    yield ""
    for name, value in (
        ("vision", flops.vision),
        ("projector", flops.projector),
        ("decoder", flops.decoder_linear),
        ("attention", flops.decoder_attention),
    ):
        yield f"{name:14} {_petaflop(value):>9} PFLOP"
    yield f"{'prefill':14} {_petaflop(flops.total):>9} PFLOP"
    yield ""
    yield "at the GPU's published peaks, which no program reaches:"
    yield f"  first token after {plan.prefill_s:.1f} s, then {plan.decode_tokens_per_s:.1f} tokens/s"
    yield ""
    if plan.fits:
        yield (
            f"it fits; at most {plan.max_images} images do"
            if plan.positions_per_image
            else "it fits"
        )
        return
    for problem in plan.problems:
        yield f"it does not fit: {problem}"
    yield f"nearest that does: {plan.suggestion or 'none on this GPU'}"


def _petaflop(flop: float) -> str:
    return f"{flop / 1e15:.4f}" if flop >= 1e12 else f"{flop / 1e15:.1e}"


def _size(nbytes: int) -> str:
    return f"{format_bytes(nbytes):>9}"
