"""`longllava-trt plan`, from config.json alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
PUBLISHED = Path(__file__).parent / "data"


def test_plan_of_the_9b_fits_and_says_how_many_images_do(cli: Cli) -> None:
    result = cli("plan", PUBLISHED / "9b")

    assert result.code == 0
    assert "weights          19.2 GB" in result.out
    assert "it fits; at most 1172 images do" in result.out


def test_plan_of_the_53b_is_refused_with_what_would_fit(cli: Cli) -> None:
    result = cli("plan", PUBLISHED / "53b", "--gpu", "a100-80gb")

    assert result.code == 1
    assert "it does not fit: 108.2 GB are needed (103.8 GB of weights)" in result.out
    assert "--moe-quant w8a16: 58.7 GB of weights, 1000 images fit" in result.out


def test_plan_as_json_adds_up(cli: Cli) -> None:
    arguments = ("--images", 128, "--moe-quant", "w8a16", "--json")
    plan = json.loads(cli("plan", PUBLISHED / "53b", *arguments).out.splitlines()[-1])

    assert plan["fits"] is True
    assert plan["device_total_bytes"] == sum(plan["device"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "voodoo2"), "GPU must be one of a100-40gb, a100-80gb, h100-80gb"),
        (("--images", "-1"), "must be a whole number from 0, got '-1'"),
        (("--moe-quant", "fp8"), "invalid choice: 'fp8'"),
    ],
)
def test_plan_explains_bad_input(arguments: tuple[str, ...], message: str, cli: Cli) -> None:
    result = cli("plan", PUBLISHED / "9b", *arguments)

    assert result.code == 2
    assert message in result.message
