"""`longllava-trt verify`: is every file of a bundle what was exported."""

from __future__ import annotations

import argparse

from longllava_trt.cli.options import Subparsers, add_bundle, add_verb, format_bytes, print_json

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  longllava-trt verify bundle
  longllava-trt verify bundle --json | tail -1
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "verify",
        help_text="hash every file of a bundle",
        description="Read every file of a bundle, weights included, and compare its SHA-256 with the manifest. "
        "Exit status 1 if one differs. Reading takes about a second a gigabyte.",
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, and print one line a file."""
    from longllava_trt.core.manifest import Manifest

    manifest = Manifest.load(args.bundle)
    problems = manifest.differences(args.bundle)
    by_file = {
        name: next((p for p in problems if p.startswith(f"{name}: ")), None)
        for name in manifest.files
    }
    if args.json:
        files = [
            {"file": name, "ok": problem is None, "problem": problem}
            for name, problem in by_file.items()
        ]
        print_json({"bundle": str(args.bundle), "ok": not problems, "files": files})
        return 1 if problems else 0
    for name, problem in by_file.items():
        size = format_bytes(manifest.files[name].nbytes)
        print(f"✗ {problem}" if problem else f"✓ {name:44} {size:>10}")
    total = format_bytes(sum(record.nbytes for record in manifest.files.values()))
    print(f"{len(by_file) - len(problems)} of {len(by_file)} files ({total}) are as exported")
    return 1 if problems else 0
