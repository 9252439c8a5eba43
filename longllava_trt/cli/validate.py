"""`longllava-trt validate`: does a bundle compute what its checkpoint says."""

from __future__ import annotations

import argparse
from pathlib import Path

from longllava_trt.cli.asking import KERNELS
from longllava_trt.cli.options import (
    Subparsers,
    add_bundle,
    add_verb,
    comma_list,
    from_zero,
    print_json,
    shown_progress,
)

__all__ = ["LEVELS", "add_parser", "run"]

LEVELS = ("op", "layer", "stage", "generation", "experts")
_EXAMPLES = """\
  longllava-trt validate bundle --reference LongLLaVA-9B
  longllava-trt validate bundle --reference LongLLaVA-9B --level stage,generation --image cat.jpg
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "validate",
        help_text="compare a bundle with its checkpoint, number by number",
        description="Run the bundle and the reference in PyTorch on the same inputs and compare them. One line a "
        "comparison: ✓ or ✗, or ~ for a figure that nothing judges; exit status 1 if one fails. Needs the 'export' "
        "extra and memory for the checkpoint.",
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    parser.add_argument(
        "--reference",
        type=Path,
        required=True,
        metavar="CKPT",
        help="checkpoint the bundle was exported from",
    )
    parser.add_argument(
        "--vision-tower",
        type=Path,
        metavar="DIR",
        help="CLIP checkpoint the bundle was exported with (default: the checkpoint's own copy)",
    )
    parser.add_argument(
        "--level",
        type=comma_list,
        action="extend",
        metavar="A,B",
        help=f"how deep: {', '.join(LEVELS)}, or all; repeat it or use commas; experts is for bundles with quantised "
        "ones (default: all)",
    )
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="compare on this image, repeatable (default: images drawn from the seed)",
    )
    parser.add_argument(
        "--kernels",
        type=comma_list,
        default=list(KERNELS),
        metavar="A,B",
        help="what runs the bundle: fast, this project's CPU kernels; onnx, plain ONNX Runtime "
        f"(default: {','.join(KERNELS)})",
    )
    parser.add_argument(
        "--seed", type=from_zero, default=0, help="seed of drawn inputs (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, and print one line a comparison."""
    from longllava_trt.validation import validate

    levels = args.level or ["all"]
    with shown_progress(args) as progress:
        report = validate(
            args.bundle,
            args.reference,
            levels=LEVELS if "all" in levels else tuple(levels),
            images=args.image,
            seed=args.seed,
            kernels=args.kernels,
            vision_tower=args.vision_tower,
            progress=progress,
        )
    if args.json:
        print_json(report.to_json())
    else:
        print("\n".join(report.lines()))
        print(f"{len(report.rows)} comparisons, {len(report.failures)} failed")
    return 0 if report.passed else 1
