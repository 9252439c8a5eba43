"""The command line explains itself, at once, and what it prints for machines can be parsed."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.cli import asking, build_parser, validate
from longllava_trt.core.stage_spec import STAGES

HEAVY = ("torch", "onnxruntime", "onnx", "numba", "numpy", "transformers", "rich", "PIL")
PROBE = f"""
import sys
from longllava_trt.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0, end.code
sys.exit(str([m for m in {HEAVY!r} if m in sys.modules]))
"""


def subparsers() -> dict[str, argparse.ArgumentParser]:
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("no verbs")


VERBS = subparsers()


def test_the_verbs_are_the_documented_ones() -> None:
    assert list(VERBS) == [
        "synth",
        "plan",
        "export",
        "build",
        "run",
        "chat",
        "validate",
        "bench",
        "inspect",
        "verify",
        "doctor",
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(verb: str, cli: Callable[..., Any]) -> None:
    result = cli(verb, "--help")
    assert result.code == 0
    assert f"longllava-trt {verb}" in result.out.split("examples:")[1]
    words = " ".join(result.out.split())
    for action in VERBS[verb]._actions:
        assert action.help, action.dest
        for option in action.option_strings:
            assert option in words
        takes_value = action.option_strings and action.nargs != 0
        if takes_value and not action.required:
            assert "(default: " in action.help, f"{verb} {action.dest} states no default"


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([v, "--help"] for v in VERBS)])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROBE, *argv], capture_output=True, text=True, check=False
    )
    assert result.stderr.strip() == "[]"


def test_no_verb_shows_the_help_and_is_a_usage_error(cli: Callable[..., Any]) -> None:
    result = cli()
    assert result.code == 2
    assert result.out == ""
    assert all(verb in result.err for verb in VERBS)


@pytest.mark.parametrize(
    "argv",
    [["fly"], ["run"], ["synth", "x", "--preset", "huge"], ["verify", "x", "--jsn"]],
    ids=["unknown-verb", "missing-arguments", "unknown-choice", "misspelt-option"],
)
def test_usage_errors_are_one_line_that_names_the_help(
    argv: list[str], cli: Callable[..., Any]
) -> None:
    result = cli(*argv)
    assert result.code == 2
    assert "--help" in result.message


def test_choices_in_the_help_are_those_of_the_library() -> None:
    from longllava_trt.validation import KERNELS, LEVELS

    assert validate.LEVELS == LEVELS
    assert asking.KERNELS == KERNELS
    stages = next(a for a in VERBS["export"]._actions if a.dest == "stages")
    assert tuple(stages.default) == STAGES


def test_defaults_of_run_are_those_of_the_library(
    tiny_bundle: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from longllava_trt.runtime.inputs.message import MediaOptions
    from longllava_trt.runtime.model import LongLLaVA, RunOptions
    from longllava_trt.runtime.sampling import SamplingParams

    args, options = build_parser().parse_args(["run", "bundle", "-p", "?"]), RunOptions()
    assert (args.backend, args.kernels) == (options.backend, options.kernels) == ("auto", "fast")
    assert args.scan == options.scan == "ours"
    assert args.threads == options.num_threads
    assert args.chunk == options.chunk_size
    assert args.vision_batch == options.vision_batch
    assert args.max_context == options.max_context
    passed: dict[str, Any] = {}
    generate = LongLLaVA.generate

    def record(self: LongLLaVA, *args: Any, **kwargs: Any) -> Any:
        passed.update(kwargs)
        return generate(self, *args, max_new_tokens=1, **kwargs)

    monkeypatch.setattr(LongLLaVA, "generate", record)
    assert cli("run", tiny_bundle, "-p", "?").code == 0
    assert passed["media"] == MediaOptions()
    assert passed["sampling"] == SamplingParams()


def test_sizes_in_the_help_are_those_of_the_backends(cli: Callable[..., Any]) -> None:
    from longllava_trt.runtime.backends import base

    words = " ".join(cli("run", "--help").out.split())
    for on_cpu, on_gpu in (
        (base.CPU_CHUNK, base.GPU_CHUNK),
        (base.CPU_VISION_BATCH, base.GPU_VISION_BATCH),
    ):
        assert f"(default: {on_cpu} on the CPU, {on_gpu} on a GPU" in words


JSON_CASES: dict[str, Callable[[Path, Path, Path], list[Any]]] = {
    "synth": lambda _c, _b, out: ["synth", out / "new"],
    "export": lambda c, _b, out: ["export", c, out / "new", "--stages", "embed"],
    "run": lambda _c, b, _o: ["run", b, "-p", "Hello", "--max-new-tokens", 2],
    "validate": lambda c, b, _o: ["validate", b, "--reference", c, "--level", "op"],
    "inspect-checkpoint": lambda c, _b, _o: ["inspect", c],
    "inspect-bundle": lambda _c, b, _o: ["inspect", b],
    "verify": lambda _c, b, _o: ["verify", b],
    "doctor": lambda _c, _b, _o: ["doctor"],
    "a-failure": lambda _c, _b, out: ["verify", out / "nothing"],
}


@pytest.mark.parametrize("case", JSON_CASES.values(), ids=JSON_CASES)
def test_json_is_the_last_line(
    case: Callable[[Path, Path, Path], list[Any]],
    tiny: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    cli: Callable[..., Any],
) -> None:
    result = cli(*case(tiny, tiny_bundle, tmp_path), "--json")
    document = json.loads(result.out.splitlines()[-1])
    assert isinstance(document, dict)
    assert document.get("exit_code", 0) == result.code
