"""`longllava-trt doctor`: is this machine able to run a bundle."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from longllava_trt.cli.options import Subparsers, add_verb, print_json

__all__ = ["add_parser", "run"]

_MARKS = {"ok": "✓", "absent": "-", "failed": "✗"}
_EXAMPLES = """\
  longllava-trt doctor
  longllava-trt doctor --plugins bundle/engines/sm80-trtrtx-1.7.1/liblongllava_plugins.so
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "doctor",
        help_text="tell whether this machine can run a bundle",
        description="Look at Python, CPU, memory, packages and TensorRT, and try the CPU kernels on a small operator. "
        "✓ is there, - is not and need not be, ✗ is needed. Exit status 3 if a bundle cannot be run.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--plugins",
        type=Path,
        metavar="FILE",
        help="load this plugin library into TensorRT and list the plugins in it (default: none)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Diagnose and print."""
    from longllava_trt.diagnosis import diagnose

    findings = diagnose(plugins=args.plugins)
    able = all(finding.status != "failed" for finding in findings)
    if args.json:
        print_json({"able": able, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            print(f"{_MARKS[finding.status]} {finding.topic:24} {finding.detail}")
        print("a bundle can be run here" if able else "a bundle cannot be run here: see ✗ above")
    return 0 if able else 3
