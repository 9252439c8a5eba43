"""`longllava-trt build`: a bundle gets engines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longllava_trt.cli.option_fields import FieldOptions
from longllava_trt.cli.options import (
    Subparsers,
    add_bundle,
    add_verb,
    comma_tuple,
    count,
    format_bytes,
    print_json,
    requires_extra,
    shown_progress,
)

if TYPE_CHECKING:
    from longllava_trt.export.engine.build import BuildReport

__all__ = ["add_parser", "run"]

_TARGETS = ("sm80", "sm86", "sm89", "sm90", "sm120", "sm121", "current")
_FLAVOURS = ("auto", "tensorrt", "tensorrt-rtx")
BUILD = FieldOptions("longllava_trt.export.engine.build", "BuildOptions")
LIMITS = FieldOptions("longllava_trt.export.engine.profiles", "EngineLimits")
_EXAMPLES = """\
  longllava-trt build bundle                                    does everything build? on any machine
  longllava-trt build bundle --target current --flavour tensorrt   on an A100 or H100, to run there
  longllava-trt build bundle --target sm89 --max-context 40000  for an L4 or RTX 4090, and less of its memory
  longllava-trt build bundle --stages decoder --force           one engine, again

targets: sm80 A100, sm86 A10 and RTX 30, sm89 L4, L40 and RTX 40, sm90 H100, sm120 RTX 50; current: the GPU at hand.
flavours: tensorrt-rtx builds for all of them but sm90 without a GPU, and runs on sm86, sm89 and sm120, not on A100 or
H100: for sm80 it is a check that everything builds. tensorrt builds for the GPU at hand: the one for A100 and H100.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "build",
        help_text="build TensorRT engines for a GPU, which need not be here",
        description="Build an engine from each stage of a bundle, check that TensorRT kept every operator, and put the "
        "engines into BUNDLE/engines/. Engines hold no weights: they get them from the bundle's files when they are "
        "loaded. What is up to date is not built again.",
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    BUILD.add(
        parser,
        "--target",
        "target",
        choices=_TARGETS,
        help="GPU architecture to build for",
    )
    BUILD.add(
        parser,
        "--flavour",
        "flavour",
        choices=_FLAVOURS,
        help="TensorRT to build with; an engine runs only with the one that built it; auto is tensorrt where it is "
        "installed, else tensorrt-rtx",
    )
    BUILD.add(
        parser,
        "--stages",
        "stages",
        type=comma_tuple,
        metavar="A,B",
        help="stages to build, separated by commas",
    )
    BUILD.add(
        parser,
        "--weights",
        "weights",
        help="external: engines take weights as inputs, are small and quickly built; embedded: engines hold them, "
        "which takes more than four times their size in memory to build",
    )
    _add_limits(parser)
    parser.add_argument(
        "--plugins",
        type=Path,
        metavar="FILE",
        help="plugin library to build with (default: compile it here, once)",
    )
    parser.add_argument(
        "--force", action="store_true", help="also build engines that are up to date"
    )
    parser.set_defaults(run=run)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("limits of the engines")
    LIMITS.add(
        limits,
        "--max-context",
        "max_context",
        type=count,
        metavar="N",
        help="tokens that a conversation may have, images included; their memory is taken whether used or not",
        default_text="as many as the model was trained for",
    )
    LIMITS.add(
        limits,
        "--chunk",
        "chunk",
        type=count,
        metavar="N",
        help="largest number of tokens that are read at once",
    )
    LIMITS.add(
        limits,
        "--vision-batch",
        "vision_batch",
        type=count,
        metavar="N",
        help="largest number of images that are encoded at once",
    )
    LIMITS.add(
        limits,
        "--sequences",
        "sequences",
        type=count,
        metavar="N",
        help="sequences that take a decode step at once, at most; with more than one, a step of one is some kernels longer",
    )


def run(args: argparse.Namespace) -> int:
    """Build, then show each engine and say where they are."""
    with requires_extra("trt-rtx"):
        from longllava_trt.export.engine.build import BuildOptions, build_engines
        from longllava_trt.export.engine.profiles import EngineLimits

    options = BuildOptions(**BUILD.values(args), limits=EngineLimits(**LIMITS.values(args)))
    with shown_progress(args) as progress:
        report = build_engines(
            args.bundle, options, plugins=args.plugins, force=args.force, progress=progress
        )
    if args.json:
        print_json(_document(report))
    else:
        print("\n".join(_lines(report)))
    return 0


def _document(report: BuildReport) -> dict[str, Any]:
    record = report.record
    return {
        "folder": str(report.folder),
        "target": record.target,
        "flavour": record.flavour,
        "tensorrt_version": record.tensorrt_version,
        "dtype": record.dtype,
        "options": dict(record.options),
        "built": list(report.built),
        "reused": list(report.reused),
        "seconds": report.seconds,
        "peak_rss_bytes": report.peak_rss_bytes,
        "runs_nowhere": report.runs_nowhere,
        "stages": {
            name: {
                "file": stage.file,
                "nbytes": stage.nbytes,
                "seconds": stage.seconds,
                "num_layers": stage.num_layers,
                "plugins": dict(stage.plugins),
                "attention": dict(stage.attention),
                "num_weights": len(stage.weights),
                "profiles": list(stage.profiles),
                "kernels": {
                    name: {
                        "launches": found.launches,
                        "kinds": dict(found.kinds()),
                        "scratch_bytes": found.scratch_bytes,
                        "excesses": [asdict(excess) for excess in found.excesses],
                    }
                    for name, found in stage.kernels.items()
                },
            }
            for name, stage in record.stages.items()
        },
    }


def _lines(report: BuildReport) -> Iterator[str]:
    record = report.record
    yield f"engines  {record.target}, {record.flavour} {record.tensorrt_version}, {record.dtype}"
    yield f"  {'stage':10} {'size':>9} {'seconds':>8} {'layers':>7} {'weights':>8}  plugins and attention"
    for name, stage in record.stages.items():
        kinds = list(stage.attention.values())
        attention = {f"{kind} attention": kinds.count(kind) for kind in sorted(set(kinds))}
        special = {**stage.plugins, **attention}
        seconds = f"{stage.seconds:.1f}" if name in report.built else "as it was"
        yield (
            f"  {name:10} {format_bytes(stage.nbytes):>9} {seconds:>8} {stage.num_layers:>7} "
            f"{len(stage.weights) or 'inside':>8}  {', '.join(f'{k} x {n}' for k, n in special.items())}".rstrip()
        )
    if not report.built:
        yield "all of them were up to date; --force builds them again"
    yield f"{report.seconds:.1f} s, peak memory {report.peak_rss_bytes / 2**30:.2f} GiB"
    known = {
        f"{excess.reason}; cure: {excess.cure}"
        for stage in record.stages.values()
        for found in stage.kernels.values()
        for excess in found.excesses
    }
    yield from (f"over a budget: {line}" for line in sorted(known))
    if report.runs_nowhere:
        yield report.runs_nowhere
    yield f"in {report.folder}"
