"""`longllava-trt synth`: a small checkpoint with random weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from longllava_trt.cli.options import Subparsers, add_verb, format_bytes, from_zero, print_json

__all__ = ["PRESETS", "add_parser", "run"]

# the library's own table would cost the help an import of NumPy
PRESETS = ("tiny", "tiny-dense", "mini")
_DTYPES = ("float32", "bfloat16", "float16")

_EXAMPLES = """\
  longllava-trt synth /tmp/tiny
  longllava-trt synth /tmp/mini --preset mini --seed 7 --dtype bfloat16
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "synth",
        help_text="make a small checkpoint with random weights",
        description="Write a synthetic checkpoint in the original's file format and key names. Its answers mean "
        "nothing; it is there to try the tools and to test them. The same seed gives the same bytes.",
        examples=_EXAMPLES,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="tiny",
        help="tiny: 4 experts, 5 MB; tiny-dense: no router, as the 9B; mini: 16 experts, hidden 512, for measuring "
        "speed (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=from_zero, default=0, help="seed of the weights (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        default="float32",
        help="dtype of every tensor (default: %(default)s)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a checkpoint that is already there"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and name its files."""
    from reference.synthetic import write_checkpoint

    files = write_checkpoint(
        args.out, preset=args.preset, seed=args.seed, dtype=args.dtype, overwrite=args.overwrite
    )
    sizes = {str(f.relative_to(args.out)): f.stat().st_size for f in files}
    if args.json:
        print_json({"checkpoint": str(args.out), "files": sizes, "nbytes": sum(sizes.values())})
        return 0
    print(f"checkpoint  {args.out}  ({args.preset}, {args.dtype}, seed {args.seed})")
    for name, nbytes in sizes.items():
        print(f"  {name:36} {format_bytes(nbytes):>10}")
    return 0
