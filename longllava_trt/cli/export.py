"""`longllava-trt export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from longllava_trt.cli.option_fields import FieldOptions
from longllava_trt.cli.options import (
    Subparsers,
    add_verb,
    comma_tuple,
    format_bytes,
    gibibytes,
    print_json,
    requires_extra,
    shown_progress,
)
from longllava_trt.core.dtypes import FLOAT_NAMES

if TYPE_CHECKING:
    from longllava_trt.export.bundle import ExportReport

__all__ = ["add_parser", "run"]

EXPORT = FieldOptions("longllava_trt.export.options", "ExportOptions")
_EXAMPLES = """\
  longllava-trt export LongLLaVA-9B bundle --dtype float32      to run on a CPU
  longllava-trt export LongLLaVA-9B bundle --weights copy       a bundle that stands alone
  longllava-trt export LongLLaVA-9B bundle --stages vision,projector
  longllava-trt export LongLLaVA-53B bundle --moe-quant w8a16   half the size on the device
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "export",
        help_text="turn a checkpoint into a bundle of ONNX graphs",
        description="Export the stages of a checkpoint to ONNX, check them, and publish the bundle whole or not at "
        "all. Weights stay where they are: the graphs point into the checkpoint's own safetensors files.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CKPT",
        help="folder with config.json, safetensors and tokenizer.json",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder to make")
    EXPORT.add(
        parser,
        "--dtype",
        "dtype",
        choices=("auto", *FLOAT_NAMES),
        help="arithmetic of the graphs; auto is the checkpoint's own. A CPU needs float32, which casts the weights "
        "at load and changes no file",
    )
    EXPORT.add(
        parser,
        "--stages",
        "stages",
        type=comma_tuple,
        metavar="A,B",
        help="stages to export, separated by commas",
    )
    EXPORT.add(
        parser,
        "--weights",
        "weights",
        help="how the checkpoint's files get into the bundle; auto: a hard link, or where the file system forbids "
        "it a symbolic link, which plain ONNX Runtime refuses to follow",
    )
    EXPORT.add(
        parser,
        "--vision-tower",
        "vision_tower",
        type=Path,
        metavar="DIR",
        help="CLIP checkpoint to take the vision tower from",
        default_text="the checkpoint's own copy",
    )
    EXPORT.add(
        parser,
        "--moe-quant",
        "moe_quant",
        help="how the experts of routed layers are stored: w8a16, int8 with a scale a row; w4a16, int4 with a scale a "
        "group of 128 columns. Both are written into the bundle; an export that was killed keeps its finished layers "
        "for the next run",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle in the folder")
    EXPORT.add(
        parser,
        "--max-ram",
        "max_ram_gib",
        type=gibibytes,
        metavar="GIB",
        help="memory limit: fail, and write no bundle, if the process takes more",
        default_text="no limit",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, then name what was written and what was linked."""
    with requires_extra("export"):
        from longllava_trt.export.bundle import export_bundle
        from longllava_trt.export.options import ExportOptions

    with shown_progress(args) as progress:
        report = export_bundle(
            args.checkpoint,
            args.bundle,
            ExportOptions(**EXPORT.values(args)),
            overwrite=args.overwrite,
            progress=progress,
        )
    files = sorted(p for p in args.bundle.rglob("*") if p.is_file())
    sizes = {p.relative_to(args.bundle).as_posix(): p.stat().st_size for p in files}
    if args.json:
        print_json(
            {
                "bundle": str(args.bundle),
                "dtype": report.dtype,
                "stages": list(report.stages),
                "new_bytes": report.new_bytes,
                "linked_bytes": report.linked_bytes,
                "seconds": report.seconds,
                "peak_rss_bytes": report.peak_rss_bytes,
                "moe_quant": report.moe_quant,
                "quantised_bytes": report.quantised_bytes,
                "quantise_seconds": report.quantise_seconds,
                "quantisation_errors": [asdict(error) for error in report.quantisation_errors],
                "files": sizes,
            }
        )
        return 0
    print(f"bundle  {args.bundle}  ({report.dtype})")
    for name, nbytes in sizes.items():
        print(f"  {name:44} {format_bytes(nbytes):>10}")
    if report.moe_quant != "none":
        print("\n".join(_quantisation_lines(report)))
    new, linked = format_bytes(report.new_bytes), format_bytes(report.linked_bytes)
    print(f"{new} written, {linked} of the checkpoint's weights linked")
    print(f"{report.seconds:.1f} s, peak memory {report.peak_rss_bytes / 2**30:.2f} GiB")
    return 0


def _quantisation_lines(report: ExportReport) -> Iterator[str]:
    """Yield a table of what the experts lost, a layer a line, and how fast it went."""
    matrices = ("gate", "up", "down")
    yield f"experts {report.moe_quant}: relative RMS error, and largest over the largest weight"
    yield f"  {'layer':>5}" + "".join(f"{matrix:>19}" for matrix in matrices)
    errors = {(error.layer, error.matrix): error for error in report.quantisation_errors}
    for layer in dict.fromkeys(layer for layer, _ in errors):
        found = [errors[layer, matrix] for matrix in matrices]
        cells = (f"{e.relative_rms:>10.5f} {e.max_abs:>8.5f}" for e in found)
        yield f"  {layer:>5}" + "".join(cells)
    if report.quantised_bytes:
        size, seconds = format_bytes(report.quantised_bytes), report.quantise_seconds
        rate = report.quantised_bytes / seconds / 1e9
        yield f"{size} quantised in {seconds:.1f} s, {rate:.2f} GB/s"
