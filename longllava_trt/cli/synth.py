"""`longllava-trt synth`: a checkpoint with random weights, or of full size without any."""

from __future__ import annotations

import argparse
from pathlib import Path

from longllava_trt.cli.options import (
    Subparsers,
    add_verb,
    count,
    format_bytes,
    from_zero,
    print_json,
)
from longllava_trt.core.dtypes import FLOAT_NAMES
from longllava_trt.models.preset_names import FORMAT_NAMES, PRESET_NAMES

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  longllava-trt synth tiny
  longllava-trt synth mini --preset mini --seed 7 --dtype bfloat16
  longllava-trt synth 53b --preset 53b --sparse            104 GB in 22 files that take no disk
  longllava-trt synth llava --preset llava-1.5-tiny --format huggingface
  longllava-trt synth 9b-2 --preset 9b --layers 2          real shapes, random weights, 3 GB
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "synth",
        help_text="make a checkpoint with random weights, or of full size without any",
        description="Write a synthetic checkpoint in the original's file format and key names. Its answers mean "
        "nothing; it is there to try the tools and to test them. The same seed gives the same bytes. The tokenizer has "
        "512 ids, whatever vocabulary the model has.",
        examples=_EXAMPLES,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument(
        "--preset",
        choices=PRESET_NAMES,
        default="tiny",
        help="tiny: 4 experts, 5 MB; tiny-dense: no router, as the 9B; mini: 16 experts, hidden 512, for measuring "
        "speed; 9b and 53b: the published sizes and shards, for --sparse or --layers; names with tiny: small models of "
        "the LLaVA series; with 3b, 7b and 13b: their published sizes (default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        choices=FORMAT_NAMES,
        help="format of config.json and of the tensors' names; LLaVA: original or huggingface; a text model with "
        "experts: per-expert or stacked (default: the first of the two)",
    )
    parser.add_argument(
        "--sparse",
        action="store_true",
        help="write sparse files: full length, but no disk space for weights, which read as zeros",
    )
    parser.add_argument(
        "--layers",
        type=count,
        metavar="N",
        help="only the first N layers of the decoder (default: all)",
    )
    parser.add_argument(
        "--seed", type=from_zero, default=0, help="seed of random weights (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=FLOAT_NAMES,
        help="dtype of every tensor (default: float32, and bfloat16 for 9b and 53b)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a checkpoint that is already there"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and name its files."""
    from longllava_trt.models.registry import find_preset
    from longllava_trt.reference.synthetic.checkpoint import write_checkpoint

    files = write_checkpoint(
        args.out,
        preset=args.preset,
        checkpoint_format=args.format,
        seed=args.seed,
        dtype=args.dtype,
        layers=args.layers,
        sparse=args.sparse,
        overwrite=args.overwrite,
    )
    sizes = {str(f.relative_to(args.out)): f.stat().st_size for f in files}
    nbytes, on_disk = sum(sizes.values()), 512 * sum(f.stat().st_blocks for f in files)
    if args.json:
        print_json(
            {
                "checkpoint": str(args.out),
                "files": sizes,
                "nbytes": nbytes,
                "disk_bytes": on_disk,
            }
        )
        return 0
    dtype = args.dtype or find_preset(args.preset).torch_dtype
    weights = "sparse: every weight is zero" if args.sparse else f"seed {args.seed}"
    print(f"checkpoint  {args.out}  ({args.preset}, {dtype}, {weights})")
    for name, size in sizes.items():
        print(f"  {name:36} {format_bytes(size):>10}")
    print(f"{format_bytes(nbytes)}, of which {format_bytes(on_disk)} on disk")
    return 0
