"""`longllava-trt inspect`: what is in a checkpoint, a bundle or a folder of engines."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longllava_trt.cli.inspect_engines import engine_document, engine_lines
from longllava_trt.cli.options import Subparsers, add_verb, format_bytes, print_json
from longllava_trt.core.engine_record import ENGINE_FILE, EngineRecord
from longllava_trt.core.errors import InputError

if TYPE_CHECKING:
    from longllava_trt.core.stage_spec import TensorSpec
    from longllava_trt.inspection import BundleSummary, CheckpointSummary, ParameterCounts
    from longllava_trt.models.spec import MixerSpec

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  longllava-trt inspect LongLLaVA-9B             also works on a folder with config.json alone
  longllava-trt inspect bundle --json | tail -1 | python -m json.tool
  longllava-trt inspect bundle/engines/sm80-trtrtx-1.7.1 --kernels   every kernel of a call
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "inspect",
        help_text="show what is in a checkpoint, a bundle or a folder of engines",
        description="Show a checkpoint's layers, parameters, tensors and bytes; a bundle's stages with their inputs "
        "and outputs, operators and weights; or, of engines, the kernels that TensorRT chose, the memory they work in "
        "and what exceeds a budget. Reads headers only, needs no GPU and next to no memory.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="folder of a checkpoint, bundle or engines"
    )
    parser.add_argument(
        "--vision-tower",
        type=Path,
        metavar="DIR",
        help="CLIP checkpoint that a checkpoint's vision tower comes from (default: the checkpoint itself)",
    )
    parser.add_argument("--kernels", action="store_true", help="also show each kernel of engines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Summarise and print."""
    from longllava_trt.inspection import inspect_bundle, inspect_checkpoint, is_bundle

    if (args.path / ENGINE_FILE).is_file():
        record = EngineRecord.load(args.path)
        document: dict[str, Any] = {"kind": "engines", "path": str(args.path)}
        document |= engine_document(record, kernels=args.kernels)
        lines = engine_lines(record, kernels=args.kernels)
    elif args.kernels:
        raise InputError(
            f"{args.path}: --kernels is for a folder with {ENGINE_FILE}; name one in BUNDLE/engines/"
        )
    elif is_bundle(args.path):
        bundle = inspect_bundle(args.path)
        document = {"kind": "bundle", "path": str(args.path)} | asdict(bundle)
        document["parameters"]["total"] = bundle.parameters.total
        lines = _bundle_lines(bundle)
    else:
        checkpoint = inspect_checkpoint(args.path, vision_tower=args.vision_tower)
        document = {"kind": "checkpoint", "path": str(args.path)} | asdict(checkpoint)
        document["parameters"]["total"] = checkpoint.parameters.total
        lines = _checkpoint_lines(checkpoint)
    if args.json:
        print_json(document)
    else:
        print("\n".join(lines))
    return 0


def _checkpoint_lines(found: CheckpointSummary) -> Iterator[str]:
    from longllava_trt.inspection import layer_pattern
    from longllava_trt.models.registry import family_of

    vision, decoder = found.config.vision, found.config.decoder
    yield f"model       {found.config.title or family_of(found.config).title}"
    if vision is not None:
        canvases = len(found.config.images.pinpoints)
        each = f"a view, tiles on one of {canvases} canvases" if canvases else "an image"
        yield (
            f"vision      {vision.num_layers} layers of {vision.hidden_size}, {vision.image_size} pixels in patches "
            f"of {vision.patch_size}: {found.config.num_image_tokens} tokens {each}"
        )
    wide = {layer.feed_forward.intermediate_size for layer in decoder.layers}
    yield (
        f"decoder     {decoder.num_layers} layers of {decoder.hidden_size}, feed-forward "
        f"{', '.join(map(str, sorted(wide)))}, vocabulary {decoder.vocab_size}"
    )
    mixers = dict.fromkeys(map(_describe_mixer, decoder.mixers))
    yield f"            {'; '.join(sorted(mixers))}"
    routed = decoder.moe_layers
    for experts in dict.fromkeys(routed.values()):
        layers = sum(other == experts for other in routed.values())
        yield f"            {experts.num_experts} experts in {layers} layers, {experts.top_k} a token"
    yield f"layers      {layer_pattern(decoder.layer_kinds, routed)}"
    yield _LEGEND
    yield from _parameter_lines(found.parameters)
    if found.has_weights:
        yield (
            f"weights     {found.num_tensors} tensors ({_counts(found.dtypes)}), {format_bytes(found.nbytes)} in "
            f"{found.num_files} files"
        )
    else:
        yield f"weights     none here; {found.num_tensors} tensors by config.json"


def _describe_mixer(mixer: MixerSpec) -> str:
    from longllava_trt.models.spec import AttentionSpec

    if isinstance(mixer, AttentionSpec):
        return f"{mixer.num_heads} heads on {mixer.num_kv_heads} of keys and values"
    return f"Mamba {mixer.d_inner} x {mixer.d_state}"


def _bundle_lines(found: BundleSummary) -> Iterator[str]:
    yield f"bundle      format {found.format_version}, {found.dtype}, {format_bytes(found.nbytes)} with its weights"
    if found.layer_pattern:
        yield f"layers      {found.layer_pattern}"
        yield _LEGEND
    yield from _parameter_lines(found.parameters)
    for name, stage in found.stages.items():
        opsets = ", ".join(f"{domain} {version}" for domain, version in stage.opsets.items())
        yield f"{name:11} {stage.file}: {stage.num_nodes} nodes, opset {opsets}"
        if stage.custom_nodes:
            bodies = ", ".join(stage.function_bodies) or "none"
            yield f"            custom nodes {_counts(stage.custom_nodes)}; function bodies for {bodies}"
        for arrow, tensors in (("in ", stage.inputs), ("out", stage.outputs)):
            yield from (f"            {arrow} {line}" for line in _tensor_lines(tensors))
    yield (
        f"weights     {found.num_weights} tensors ({_counts(found.stored_dtypes)}), {format_bytes(found.weight_bytes)}; "
        f"transform {_counts(found.transforms)}"
    )
    for file, kind in found.weight_files.items():
        yield f"            {file} ({kind})"
    yield "made by     " + ", ".join(f"{name} {v}" for name, v in found.produced_by.items())


_LEGEND = "            (A attention, M Mamba, * routed experts)"


def _parameter_lines(parameters: ParameterCounts) -> Iterator[str]:
    yield f"parameters  {parameters.total:>14,}"
    yield f"  vision    {parameters.vision:>14,}"
    yield f"  projector {parameters.projector:>14,}"
    yield f"  decoder   {parameters.decoder:>14,}   {parameters.decoder_active:,} active for one token"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} x {number}" for name, number in counts.items())


def _tensor_lines(tensors: Iterable[TensorSpec]) -> Iterator[str]:
    """Yield one line a tensor; the layers of a carried state that are alike share one."""
    layers: dict[tuple[str, str], list[str]] = {}
    for tensor in tensors:
        layer = re.search(r"(?<=\.)\d+(?=\.)", tensor.name)
        name = tensor.name.replace(f".{layer[0]}.", ".{}.") if layer else tensor.name
        kind = f"[{', '.join(map(str, tensor.shape))}] {tensor.dtype}"
        layers.setdefault((name, kind), []).extend([layer[0]] if layer else [])
    for (name, kind), numbers in layers.items():
        which = ",".join(numbers)
        which = f"{{{which}}}" if len(numbers) > 1 else which
        yield f"{name.replace('{}', which)} {kind}"
