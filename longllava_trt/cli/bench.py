"""`longllava-trt bench`: how fast a bundle is on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from longllava_trt.cli.asking import add_engine_options, chosen_run_options
from longllava_trt.cli.option_fields import FieldOptions
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

BENCH = FieldOptions("longllava_trt.bench.settings", "BenchSettings")
_EXAMPLES = """\
  longllava-trt bench bundle
  longllava-trt bench bundle --images 0,1,10,100 --plot bench.png
  longllava-trt bench bundle --image a.jpg --images 1 -p "What is this?" --new-tokens 128
  longllava-trt bench bundle --kernels onnx --threads 1 --json > onnx.json
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "bench",
        help_text="measure how fast a bundle is here: stages, first token, rates, memory",
        description="Time each stage alone and whole answers about several numbers of images: time to the first token, "
        "tokens a second of prefill and decoding, time an image, the decode loop's own time, peak memory. Every figure is "
        "a median with the smallest and the largest sample.",
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    BENCH.add(
        parser,
        "--images",
        "image_counts",
        type=several(from_zero),
        metavar="N,M",
        help="numbers of images to show",
    )
    BENCH.add(
        parser,
        "--image",
        "images",
        action="append",
        type=Path,
        metavar="FILE",
        help="an image to show; repeat it for more, they are shown in turns",
        default_text="drawn ones of 640 by 480 pixels",
    )
    BENCH.add(
        parser, ("-p", "--prompt"), "prompt", metavar="TEXT", help="the question, after the images"
    )
    BENCH.add(
        parser,
        "--new-tokens",
        "new_tokens",
        type=count,
        metavar="N",
        help="tokens of every answer, from 2",
    )
    BENCH.add(
        parser,
        "--warmup",
        "warmup",
        type=from_zero,
        metavar="N",
        help="repeats that do not count, before the others; with 0 loading counts",
    )
    BENCH.add(parser, "--repeats", "repeats", type=count, metavar="N", help="repeats that count")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw time and memory against images as a PNG (default: none)",
    )
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, draw, and print."""
    from longllava_trt.bench import BenchSettings, run_bench
    from longllava_trt.bench.chart import check_target, save_chart

    settings = BenchSettings(**BENCH.values(args))
    if args.plot is not None:
        check_target(args.plot)
    with shown_progress(args) as progress:
        report = run_bench(
            args.bundle, settings=settings, options=chosen_run_options(args), progress=progress
        )
    if args.plot is not None:
        save_chart(report, args.plot)
    if args.json:
        print_json(report.to_json() | {"plot": str(args.plot) if args.plot else None})
    else:
        print("\n".join(report.lines()))
        if args.plot is not None:
            print(f"\nwrote {args.plot}")
    return 0
