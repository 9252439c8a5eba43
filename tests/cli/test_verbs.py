"""Output and exit status of each verb when all is well."""

from __future__ import annotations

import importlib.metadata
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import longllava_trt
from longllava_trt import diagnosis
from longllava_trt.cli.options import chosen_images, format_bytes
from longllava_trt.core.errors import MissingDependencyError
from longllava_trt.core.manifest import Manifest

Cli = Callable[..., Any]
PUBLISHED = Path(__file__).parent / "data"


def last_json(result: Any) -> Any:
    return json.loads(result.out.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "total", "decoder", "active", "tensors"),
    [
        ("9b", 9_615_177_600, 9_290_690_432, 9_290_690_432, 910),
        ("53b", 51_894_810_496, 51_570_323_328, 12_110_311_296, 1646),
    ],
)
def test_inspect_counts_the_published_models_from_their_config(
    name: str, total: int, decoder: int, active: int, tensors: int, cli: Cli
) -> None:
    found = last_json(cli("inspect", PUBLISHED / name, "--json"))
    assert found["parameters"] == {
        "vision": 303_507_456,
        "projector": 20_979_712,
        "decoder": decoder,
        "decoder_active": active,
        "total": total,
    }
    assert found["num_tensors"] == tensors
    assert not found["has_weights"]
    text = cli("inspect", PUBLISHED / name).out
    assert f"{total:,}" in text
    block = "M M* M M* A M* M M*" if name == "53b" else "M M M M A M M M"
    assert " ".join([block] * 4) in text


def test_inspect_checkpoint(tiny: Path, cli: Cli) -> None:
    found = last_json(cli("inspect", tiny, "--json"))
    assert found["kind"] == "checkpoint"
    assert found["dtypes"] == {"float32": found["num_tensors"]}
    assert found["nbytes"] == 4 * found["parameters"]["total"]
    assert found["num_files"] == 3


def test_inspect_bundle(tiny_bundle: Path, cli: Cli) -> None:
    found = last_json(cli("inspect", tiny_bundle, "--json"))
    assert found["kind"] == "bundle"
    assert found["layer_pattern"] == "M M* M M* A M* M M*"
    assert found["transforms"] == {"none": found["num_weights"]}
    decoder = found["stages"]["decoder"]
    assert decoder["custom_nodes"] == {"longllava::SelectiveScan": 7, "longllava::SparseMoE": 4}
    assert set(decoder["function_bodies"]) == set(decoder["custom_nodes"])
    assert decoder["inputs"][0] == {
        "name": "inputs_embeds",
        "shape": ["batch", "seq_len", 64],
        "dtype": "float32",
    }
    text = cli("inspect", tiny_bundle).out
    assert "past_key_values.{0,1,2,3,5,6,7}.conv_state [batch, 128, 3] float32" in text
    assert "(hard link)" in text


@pytest.mark.usefixtures("traced_before")
def test_inspect_bundle_of_some_stages(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    made = cli("export", tiny, tmp_path / "part", "--stages", "embed", "--weights", "copy")
    assert made.code == 0
    result = cli("inspect", tmp_path / "part")
    assert "(own copy)" in result.out
    assert "layers" not in result.out


@pytest.mark.usefixtures("traced_before")
@pytest.mark.parametrize("mode", ["hardlink", "copy"])
def test_export_counts_new_and_linked_bytes(
    mode: str, tiny: Path, tmp_path: Path, cli: Cli
) -> None:
    options = ["--stages", "embed", "--weights", mode, "--json"]
    made = last_json(cli("export", tiny, tmp_path / "part", *options))
    weights = sum(n for name, n in made["files"].items() if name.startswith("weights/"))
    assert made["linked_bytes"] == (weights if mode == "hardlink" else 0)
    assert made["new_bytes"] + made["linked_bytes"] == sum(made["files"].values())


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli) -> None:
    for name in [m for m in sys.modules if m.startswith("longllava_trt.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    result = cli("export", tmp_path, tmp_path / "bundle")
    assert result.code == MissingDependencyError.exit_code == 3
    assert "longllava-trt[export]" in result.message


def test_run_streams_the_text_that_json_holds(tiny_bundle: Path, pictures: Path, cli: Cli) -> None:
    ask = ["run", tiny_bundle, "--images-dir", pictures, "-p", "What?", "--max-new-tokens", 12]
    streamed = cli(*ask)
    document = last_json(cli(*ask, "--json", "--chunk", 7, "--vision-batch", 1, "--threads", 1))
    assert streamed.code == 0
    assert streamed.out.strip() == document["text"]
    assert document["backend"] == "ort"
    assert len(document["token_ids"]) <= 12
    assert document["num_images"] == 2
    assert document["prompt_tokens"] > 2 * 144
    assert document["timings"]["prefill_s"] > 0
    assert "prefill" in streamed.err
    assert "tokens/s" in streamed.err


def test_run_by_function_bodies_says_the_same(tiny_bundle: Path, cli: Cli) -> None:
    ask = ["run", tiny_bundle, "-p", "Hello there", "--max-new-tokens", 16, "--json", "-q"]
    # the last is the second's old name
    names = ("fast", "onnx", "bodies")
    fast, onnx, bodies = (last_json(cli(*ask, "--kernels", name)) for name in names)
    assert fast["token_ids"] == onnx["token_ids"] == bodies["token_ids"]


def test_run_shows_the_prompt(tiny_bundle: Path, pictures: Path, cli: Cli) -> None:
    image = next(iter(sorted(pictures.iterdir())))
    ask = ["run", tiny_bundle, "-p", "Is <image> it?", "--image", image, "--max-new-tokens", 2]
    text = "<|startoftext|><|User|>\nIs <img><image></img> it?\n<|startoftext|><|Assistant|>\n"
    result = cli(*ask, "--show-prompt", "-q")
    num_ids = int(result.err.removeprefix("prompt of ").split()[0])
    assert result.err == f"prompt of {num_ids} ids and 1 image:\n{text}\n"
    document = json.loads(cli(*ask, "--show-prompt", "--json", "-q").out)
    assert document["prompt"] == {"text": text, "num_ids": num_ids, "num_images": 1}
    image_tokens = Manifest.load(tiny_bundle).stage("projector").spec.outputs[0].shape[1]
    assert document["prompt_tokens"] == num_ids + int(image_tokens)
    assert "prompt" not in json.loads(cli(*ask, "--json", "-q").out)


def test_run_refuses_a_format_of_another_model(tiny_bundle: Path, cli: Cli) -> None:
    result = cli("run", tiny_bundle, "-p", "Hello", "--prompt-format", "v1")
    assert result.code == 2
    assert result.message == (
        "run: prompt_format has no meaning for LongLLaVA, whose prompts have one format, got 'v1'; leave it out"
    )


def test_run_reads_the_prompt_from_stdin(
    tiny_bundle: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = cli("run", tiny_bundle, "-p", "Hello there", "--max-new-tokens", 8)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello there"))
    piped = cli("run", tiny_bundle, "-p", "-", "--max-new-tokens", 8, "-q")
    assert piped.out == typed.out
    assert piped.err == ""


@pytest.mark.parametrize(
    ("options", "num_images", "positions"),
    [
        ([], 3, 151 * 3),
        (["--frames", 2], 2, 151 * 2),
        (["--seconds-per-frame", 2], 2, 151 * 2),
        (["--image", "PICTURE"], 4, 151 * 3 + 150),
        (["--image", "PICTURE", "--hires"], 5, 151 * 3 + 2 * 150),
        (["--image", "PICTURE", "--official-compat"], 4, 151 * 4),
    ],
    ids=["all", "capped", "slower", "still", "tiles", "official"],
)
def test_run_shows_a_video(
    options: list[Any],
    num_images: int,
    positions: int,
    tiny_bundle: Path,
    film: Path,
    pictures: Path,
    cli: Cli,
) -> None:
    options = [pictures / "frame10.png" if word == "PICTURE" else word for word in options]
    ask = ["run", tiny_bundle, "--video", film, "-p", "What?", "--max-new-tokens", 2, "--json"]
    document = last_json(cli(*ask, *options))
    assert document["num_images"] == num_images
    # the small tokenizer cuts the markers into more pieces than the original's
    assert document["prompt_tokens"] > positions
    assert document["finish_reason"] == "length"


def test_run_draws_with_a_seed_and_ends_at_a_stop_text(tiny_bundle: Path, cli: Cli) -> None:
    ask = ["run", tiny_bundle, "-p", "Hello", "--max-new-tokens", 16, "--json", "-q"]
    draw = ["--temperature", 1, "--top-k", 100, "--top-p", 0.95, "--repetition-penalty", 1.2]

    def asked(*options: Any) -> Any:
        return last_json(cli(*ask, *options))

    first = asked(*draw, "--seed", 3)
    assert first["token_ids"] == asked(*draw, "--seed", 3)["token_ids"]
    assert first["token_ids"] != asked(*draw, "--seed", 4)["token_ids"]
    stop = first["text"][4:6]
    stopped = asked(*draw, "--seed", 3, "--stop", "never", "--stop", stop)
    assert stopped["finish_reason"] == "stop"
    assert first["text"].startswith(stopped["text"])
    assert stop not in stopped["text"]


def test_images_come_in_natural_order(pictures: Path) -> None:
    from longllava_trt.cli import build_parser

    words = ["run", "b", "-p", "?", "--images-dir", str(pictures), "--image", "first.png"]
    chosen = chosen_images(build_parser().parse_args(words))
    assert [p.name for p in chosen] == ["first.png", "frame2.jpg", "frame10.png"]


def test_verify_ticks_every_file(tiny_bundle: Path, cli: Cli) -> None:
    result = cli("verify", tiny_bundle)
    assert result.code == 0
    files = [p for p in tiny_bundle.rglob("*") if p.is_file() and p.name != "manifest.json"]
    assert result.out.count("✓ ") == len(files)


def test_validate_passes_and_fails(tiny: Path, tiny_bundle: Path, tmp_path: Path, cli: Cli) -> None:
    check = ["validate", tiny_bundle, "--reference", tiny, "--level", "op", "--kernels", "fast"]
    result = cli(*check)
    assert result.code == 0, result.err
    assert "✓" in result.out
    assert "✗" not in result.out


def test_validate_mismatch_is_exit_status_1(
    tiny: Path, tiny_bundle: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longllava_trt.core.parity import ParityReport, ParityRow

    report = ParityReport((ParityRow(name="op scan", status="failed", problem="wrong"),))
    monkeypatch.setattr("longllava_trt.validation.validate", lambda *_a, **_k: report)
    result = cli("validate", tiny_bundle, "--reference", tiny)
    assert result.code == 1
    assert "✗" in result.out
    assert result.out.endswith("1 comparisons, 1 failed\n")


def test_doctor_approves_of_this_machine(cli: Cli) -> None:
    result = cli("doctor")
    assert result.code == 0, result.out
    assert "✓ fast kernels" in result.out
    assert "CUDA driver" in result.out
    for backend in ("auto", "ort", "trt", "kernels"):
        assert f"--backend {backend}" in result.out
    assert "✓ --backend ort" in result.out


def test_doctor_names_what_is_missing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["numpy>=2", "no-such-core>=1", 'no-such-gpu>=1; extra == "trt"', 'x; extra == "dev"']
    monkeypatch.setattr(diagnosis, "requires", lambda _: needs)
    result = cli("doctor")
    assert result.code == 3
    assert f"✓ {'numpy':24} {importlib.metadata.version('numpy')}" in result.out
    assert "not installed; pip install longllava-trt\n" in result.out
    assert "not installed; pip install 'longllava-trt[trt]'" in result.out
    assert result.out.count("✗ no-such") == 1
    assert "fast kernels" not in result.out


@pytest.mark.parametrize("wrong", [1e-3, np.nan], ids=["off", "nan"])
def test_doctor_notices_a_wrong_kernel(
    wrong: float, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = diagnosis._run_scan

    def run(inputs: Any, *, fast: bool) -> Any:
        outputs = right(inputs, fast=fast)
        return [y + np.float32(wrong * fast) for y in outputs]

    monkeypatch.setattr(diagnosis, "_run_scan", run)
    result = cli("doctor")
    assert result.code == 3
    assert "✗ fast kernels" in result.out


def test_package_offers_its_public_names() -> None:
    from longllava_trt.core.errors import InputError
    from longllava_trt.runtime.model import LongLLaVA

    assert longllava_trt.LongLLaVA is LongLLaVA
    assert longllava_trt.InputError is InputError
    assert set(longllava_trt.__all__) <= set(dir(longllava_trt))
    with pytest.raises(AttributeError, match="no attribute 'Chatbot'"):
        _ = longllava_trt.Chatbot


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (2_495_376, "2.5 MB"),
        (103_789_620_992, "103.8 GB"),
        (3 * 10**15, "3000.0 TB"),
    ],
)
def test_sizes_read_well(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


def test_synth_sparse_tells_length_from_disk(tmp_path: Path, cli: Cli) -> None:
    found = last_json(cli("synth", tmp_path / "9b", "--preset", "9b", "--sparse", "--json"))
    assert found["nbytes"] > 19e9
    assert found["disk_bytes"] < 1e6
    text = cli("synth", tmp_path / "part", "--preset", "9b", "--layers", 1, "--sparse").out
    assert "(9b, bfloat16, sparse: every weight is zero)" in text
    assert last_json(cli("inspect", tmp_path / "9b", "--json"))["parameters"]["total"] == (
        9_615_177_600
    )


def test_synth_refuses_a_published_size_with_weights(tmp_path: Path, cli: Cli) -> None:
    result = cli("synth", tmp_path / "out", "--preset", "53b")
    assert result.code == 2
    assert "would write 103789620992 bytes" in result.message


@pytest.mark.parametrize("amount", ["0", "-1", "much", "nan", "inf"])
def test_max_ram_must_be_an_amount(amount: str, tmp_path: Path, cli: Cli) -> None:
    result = cli("export", tmp_path, tmp_path / "out", "--max-ram", amount)
    assert result.code == 2
    assert "must be a number of GiB above 0" in result.message
