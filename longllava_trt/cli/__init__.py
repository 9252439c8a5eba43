"""The command line: one module a verb, each of which translates its options into one library call.

options.py      options that several verbs share
asking.py       options of every verb that asks a question
streams.py      terminals that lack a character, pipes that are closed, disks that are full
synth.py plan.py export.py build.py run.py chat.py validate.py bench.py inspect.py verify.py doctor.py
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

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
from longllava_trt.cli.options import add_volume, join_volume
from longllava_trt.cli.streams import guarded_output
from longllava_trt.core.errors import LongLLaVAError
from longllava_trt.core.version import __version__

__all__ = ["VERBS", "build_parser", "main"]

VERBS = (synth, plan, export, build, run, chat, validate, bench, inspect, verify, doctor)

_DESCRIPTION = (
    "Export checkpoints of the LLaVA series to ONNX bundles, check them, and ask them about images."
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

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write a help text or an error; argparse's own would swallow that it cannot be written."""
        if message and (stream := file or sys.stderr) is not None:
            stream.write(message)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; it needs no heavy import."""
    parser = _Parser(
        prog="longllava-trt",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"longllava-trt {__version__}")
    add_volume(parser, before_verb=True)
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB")
    for verb in VERBS:
        verb.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the process exit status.

    Args:
        argv: Arguments after the program's name; by default those of this process.
    """
    with guarded_output() as output:
        output.status = _main(argv)
    return output.status


def _main(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return 2
    join_volume(parser, args)
    from longllava_trt.core.logs import configure

    configure(-1 if args.quiet else args.verbose)
    try:
        status: int = args.run(args)
    except LongLLaVAError as err:
        return _report(err, args)
    except KeyboardInterrupt:
        # one that passed through exec() of a text, as dataclasses use it, would make Python end by the signal though it
        # is caught here; running any other text forgets it
        exec("")  # noqa: S102 - nothing is executed
        print("interrupted", file=sys.stderr)
        return 130
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
