"""`longllava-trt needle`: does a bundle find one marked picture among a thousand."""

from __future__ import annotations

import argparse
from pathlib import Path

from longllava_trt.cli.asking import add_kernels, add_threads, chosen_run_options
from longllava_trt.cli.options import (
    Subparsers,
    add_bundle,
    add_verb,
    count,
    from_zero,
    print_json,
    several,
    shown_progress,
)

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  longllava-trt export examples/needle/checkpoint bundle --dtype float32
  longllava-trt needle bundle
  longllava-trt needle bundle --images 1000 --reference examples/needle/checkpoint
  longllava-trt needle bundle --seed 0,1,2 --picture needle.png
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "needle",
        help_text="find one marked picture among up to a thousand",
        description="Draw haystacks of synthetic pictures with one marked picture at each of several depths, and ask "
        "which mark it is. Exit status 1 if fewer than 9 of 10 answers are right for any number of images, or an "
        "answer differs from the reference's. Only a checkpoint trained for it can pass: examples/needle ships one.",
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    parser.add_argument(
        "--images",
        type=several(count),
        default=(10, 100, 300, 1000),
        metavar="N,M",
        help="numbers of images in a haystack (default: 10,100,300,1000)",
    )
    parser.add_argument(
        "--depths",
        type=count,
        default=10,
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
    add_kernels(parser)
    add_threads(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask, print the table, and draw it."""
    from longllava_trt.needle import run_needle
    from longllava_trt.needle.heat_map import save_heat_map

    with shown_progress(args) as progress:
        report = run_needle(
            args.bundle,
            image_counts=args.images,
            num_depths=args.depths,
            seeds=args.seed,
            reference=args.reference,
            options=chosen_run_options(args),
            progress=progress,
        )
    if args.picture is not None:
        save_heat_map(report, args.picture)
    if args.json:
        print_json(report.to_json())
    else:
        print("\n".join(report.lines()))
    return 0 if report.passed else 1
