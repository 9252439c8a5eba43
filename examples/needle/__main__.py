"""`python -m examples.needle BUNDLE`: does a bundle find one marked picture among a thousand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.needle import IMAGE_COUNTS, NUM_DEPTHS, run_needle
from examples.needle.heat_map import save_heat_map
from longllava_trt.cli.options import (
    add_bundle,
    count,
    from_zero,
    print_json,
    several,
    shown_progress,
)
from longllava_trt.core.errors import LongLLaVAError
from longllava_trt.runtime.model import RunOptions

__all__ = ["main"]

_EPILOG = """\
examples:
  longllava-trt export examples/needle/checkpoint bundle --dtype float32
  python -m examples.needle bundle
  python -m examples.needle bundle --images 1000 --reference examples/needle/checkpoint
  python -m examples.needle bundle --seed 0,1,2 --picture needle.png

exit status: 0 passed; 1 fewer than 9 of 10 answers are right for a number of images, or an answer
differs from the reference's; 2 bad input; 3 something needed is missing.
Only a checkpoint that was trained for it can pass: examples/needle/checkpoint is one.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.needle",
        description="Draw haystacks of synthetic pictures with one marked picture at each of several "
        "depths, and ask which mark it is.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_bundle(parser)
    parser.add_argument(
        "--images",
        type=several(count),
        default=IMAGE_COUNTS,
        metavar="N,M",
        help=f"numbers of images in a haystack (default: {','.join(map(str, IMAGE_COUNTS))})",
    )
    parser.add_argument(
        "--depths",
        type=count,
        default=NUM_DEPTHS,
        metavar="N",
        help="places of the marked picture, from the first to the last (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=several(from_zero),
        default=(0,),
        metavar="N,M",
        help="seeds of haystacks and marks; training drew from others (default: 0)",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="CKPT",
        help="checkpoint the bundle was exported from; it is asked too, in PyTorch (default: none)",
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the table as a PNG (default: none)"
    )
    parser.add_argument(
        "--kernels",
        default=RunOptions().kernels,
        help="as for 'longllava-trt run' (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=count, metavar="N", help="threads of one operator (default: one a core)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, print the table, draw it, and return the exit status."""
    args = build_parser().parse_args(argv)
    try:
        return _run(args)
    except LongLLaVAError as err:
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code


def _run(args: argparse.Namespace) -> int:
    with shown_progress(args) as progress:
        report = run_needle(
            args.bundle,
            image_counts=args.images,
            num_depths=args.depths,
            seeds=args.seed,
            reference=args.reference,
            options=RunOptions(backend="ort", kernels=args.kernels, num_threads=args.threads),
            progress=progress,
        )
    if args.picture is not None:
        save_heat_map(report, args.picture)
    if args.json:
        print_json(report.to_json())
    else:
        print("\n".join(report.lines()))
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
