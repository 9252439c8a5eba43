"""The command line: one module a verb, each of which translates its options into one library call.

options.py      options that several verbs share
asking.py       options of every verb that asks a question
synth.py plan.py export.py build.py run.py chat.py validate.py bench.py inspect.py verify.py doctor.py
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from longllava_trt.cli import (
    bench,
    build,
    chat,
    doctor,
    export,
    inspect,
    plan,
    run,
    synth,
    validate,
    verify,
)
from longllava_trt.core.errors import LongLLaVAError
from longllava_trt.core.version import __version__

__all__ = ["VERBS", "build_parser", "main"]

VERBS = (synth, plan, export, build, run, chat, validate, bench, inspect, verify, doctor)

_DESCRIPTION = (
    "Export LongLLaVA checkpoints to ONNX bundles, check them, and ask them about images."
)
_EPILOG = """\
from nothing to an answer:
  longllava-trt synth model --preset tiny         a small checkpoint with random weights
  longllava-trt export model bundle               checkpoint to ONNX, weights linked and not copied
  longllava-trt run bundle --image cat.jpg -p "What is this?"
  longllava-trt validate bundle --reference model

exit status: 0 all is well; 1 a check ran and failed; 2 bad input; 3 something needed is missing; 130 interrupted.
Results go to stdout; progress, logs and errors to stderr.
"""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as we report any bad input: one paragraph, exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see '{self.prog} --help'\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; it needs no heavy import."""
    parser = _Parser(
        prog="longllava-trt",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"longllava-trt {__version__}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB")
    for verb in VERBS:
        verb.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the process exit status.

    Args:
        argv: Arguments after the program's name; by default those of this process.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return 2
    from longllava_trt.core.logs import configure

    configure(-1 if args.quiet else args.verbose)
    try:
        return _run_verb(args)
    except LongLLaVAError as err:
        return _report(err, args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader has left, as `head` does; Python would complain once more when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run_verb(args: argparse.Namespace) -> int:
    status: int = args.run(args)
    sys.stdout.flush()
    return status


def _report(err: LongLLaVAError, args: argparse.Namespace) -> int:
    """Say on stderr what went wrong, in one paragraph."""
    if args.verbose:
        traceback.print_exception(err)
    print(f"error: {' '.join(str(err).split())}", file=sys.stderr)
    if args.json:
        error = {"type": type(err).__name__, "message": str(err)}
        print(json.dumps({"error": error, "exit_code": err.exit_code}))
    return err.exit_code
