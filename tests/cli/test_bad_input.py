"""Bad input: one paragraph on stderr, exit status 2, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Cli = Callable[..., Any]
SHARD = "model-00001-of-00003.safetensors"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_header(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the header of a safetensors file and leave its data."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def transpose_embeddings(header: dict[str, Any]) -> None:
    header["model.embed_tokens.weight"]["shape"].reverse()


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


BROKEN_CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (shutil.rmtree, "config.json: not found"),
    "missing-config": (lambda c: (c / "config.json").unlink(), "config.json: not found"),
    "config-is-no-json": (lambda c: (c / "config.json").write_text("{"), "as JSON"),
    "missing-shard": (lambda c: (c / SHARD).unlink(), f"{SHARD} is missing"),
    "truncated-shard": (lambda c: truncate(c / SHARD), f"{SHARD} is cut off"),
    "empty-shard": (lambda c: (c / SHARD).write_bytes(b""), SHARD),
    "wrong-shape": (
        lambda c: edit_header(c / SHARD, transpose_embeddings),
        "model.embed_tokens.weight must be [512, 64], got [64, 512]",
    ),
    "config-of-another-model": (
        lambda c: edit_json(c / "config.json", intermediate_size=448),
        "must be [448, 64], got [224, 64]",
    ),
    "unknown-key": (
        lambda c: edit_json(c / "config.json", rope_theta=10000.0),
        "unknown key 'rope_theta'",
    ),
    "key-with-another-value": (
        lambda c: edit_json(c / "config.json", resamplePooling="1d"),
        "'resamplePooling' must be '2d', got '1d'",
    ),
    "number-as-text": (
        lambda c: edit_json(c / "config.json", num_experts="4"),
        "'num_experts' must be a number, got '4'",
    ),
    "missing-tokenizer": (
        lambda c: (c / "tokenizer.json").unlink(),
        "tokenizer.json: not found",
    ),
}


@pytest.mark.parametrize(("spoil", "expected"), BROKEN_CHECKPOINTS.values(), ids=BROKEN_CHECKPOINTS)
def test_broken_checkpoint(
    spoil: Callable[[Path], Any], expected: str, checkpoint: Path, tmp_path: Path, cli: Cli
) -> None:
    spoil(checkpoint)
    home = tmp_path / "new"
    home.mkdir()
    result = cli("export", checkpoint, home / "bundle")
    assert result.code == 2
    assert expected in result.message
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("verb", ["synth", "export"])
@pytest.mark.parametrize("options", [[], ["--overwrite"]], ids=["plain", "overwrite"])
def test_target_that_holds_something_else(
    verb: str, options: list[str], tiny: Path, tmp_path: Path, cli: Cli
) -> None:
    target = tmp_path / "taken"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    source = [tiny] if verb == "export" else []
    result = cli(verb, *source, target, *options)
    assert result.code == 2
    assert str(target) in result.message
    assert [p.name for p in tmp_path.rglob("*")] == ["taken", "thesis.txt"]


def test_target_whose_parent_is_a_file(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "file").write_text("")
    result = cli("export", tiny, tmp_path / "file" / "bundle")
    assert result.code == 2
    assert "cannot be written" in result.message


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_half_a_picture(path: Path) -> None:
    Image.effect_noise((200, 200), 50).save(path, "PNG")
    os.truncate(path, path.stat().st_size // 2)


BAD_IMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda _: None, "cannot be opened"),
    "folder": (lambda p: p.mkdir(), "expected a file"),
    "zero-bytes": (lambda p: p.write_bytes(b""), "empty (0 bytes)"),
    "text": (lambda p: p.write_text("not a picture"), "not an image"),
    "truncated": (write_half_a_picture, "cannot be decoded"),
    "bomb": (lambda p: p.write_bytes(png_header(60_000, 60_000)), "too large"),
}


@pytest.mark.parametrize(("make", "expected"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_image(
    make: Callable[[Path], Any],
    expected: str,
    tiny_bundle: Path,
    pictures: Path,
    tmp_path: Path,
    cli: Cli,
) -> None:
    make(tmp_path / "bad.png")
    good = pictures / "frame10.png"
    result = cli("run", tiny_bundle, "--image", good, "--image", tmp_path / "bad.png", "-p", "Hi")
    assert result.code == 2
    assert "image 2" in result.message
    assert "bad.png" in result.message
    assert expected in result.message


def test_a_video_as_image_is_told_from_a_broken_one(
    tiny_bundle: Path, film: Path, cli: Cli
) -> None:
    result = cli("run", tiny_bundle, "--image", film, "-p", "Hi")
    assert result.code == 2
    assert "this is a video, and a still image is expected; show it with --video" in result.message


def test_video_that_breaks_off_is_reported_by_the_process(
    tiny_bundle: Path, film: Path, tmp_path: Path
) -> None:
    """The decoder's own library must not write to stderr beside us."""
    broken = tmp_path / "film.mp4"
    broken.write_bytes(film.read_bytes()[:-400])
    process = start("run", tiny_bundle, "--video", broken, "-p", "Hi", "-q")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: video 1")
    assert err.count("\n") == 1


BAD_REQUESTS: dict[str, tuple[list[Any], str]] = {
    "more-placeholders": (["-p", "<image> or <image>?"], "got 2 for 1 images"),
    "fewer-placeholders": (["-p", "<image>?", "--image", "FRAME2"], "got 1 for 2 images"),
    "empty-prompt": (["-p", ""], "the text is empty"),
    "blank-prompt": (["-p", " \n"], "the text is empty"),
    "longer-than-the-cache": (["-p", "Hi", "--max-context", "100"], "the cache has 100"),
    "answer-longer-than-the-cache": (["-p", "Hi", "--max-new-tokens", "999999"], "answer up to"),
    "negative-tokens": (["-p", "Hi", "--max-new-tokens", "-5"], "--max-new-tokens"),
    "zero-chunk": (["-p", "Hi", "--chunk", "0"], "--chunk"),
    "negative-batch": (["-p", "Hi", "--vision-batch", "-1"], "--vision-batch"),
    "negative-context": (["-p", "Hi", "--max-context", "-1"], "--max-context"),
    "threads-as-text": (["-p", "Hi", "--threads", "two"], "--threads"),
    "temperature-as-text": (["-p", "Hi", "--temperature", "hot"], "--temperature"),
    "negative-temperature": (["-p", "Hi", "--temperature", "-1"], "temperature must be 0"),
    "top-p-when-greedy": (["-p", "Hi", "--top-p", "0.9"], "do nothing at temperature 0"),
    "empty-stop": (["-p", "Hi", "--stop", ""], "none of them empty"),
    "least-above-most": (["-p", "Hi", "--max-new-tokens", "3", "--min-new-tokens", "4"], "exceeds"),
    "negative-seed": (["-p", "Hi", "--seed", "-1"], "--seed"),
    "zero-frames": (["-p", "Hi", "--frames", "0"], "--frames"),
    "negative-seconds": (["-p", "Hi", "--seconds-per-frame", "-2"], "seconds_per_frame must be"),
    "no-such-video": (["-p", "Hi", "--video", "NOWHERE"], "video 1"),
    "text-as-video": (["-p", "Hi", "--video", "NOTES"], "not a video that can be read"),
    "no-such-folder": (["-p", "Hi", "--images-dir", "NOWHERE"], "must be a folder"),
    "folder-without-images": (["-p", "Hi", "--images-dir", "EMPTY"], "holds no image"),
}


@pytest.mark.parametrize(("options", "expected"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_request(
    options: list[Any], expected: str, tiny_bundle: Path, pictures: Path, tmp_path: Path, cli: Cli
) -> None:
    places = {"FRAME2": pictures / "frame2.jpg", "NOWHERE": tmp_path / "none", "EMPTY": tmp_path}
    places["NOTES"] = pictures / "notes.txt"
    options = [places.get(word, word) for word in options]
    result = cli("run", tiny_bundle, "--image", pictures / "frame10.png", *options)
    assert result.code == 2
    assert expected in result.message


@pytest.mark.parametrize(
    "argv",
    [
        ["synth", "OUT", "--seed", "-1"],
        ["export", "CKPT", "OUT", "--stages", "vision,encoder"],
        ["export", "CKPT", "OUT", "--stages", ","],
        ["export", "CKPT", "OUT", "--vision-tower", "NOWHERE"],
        ["inspect", "NOWHERE"],
        ["validate", "BUNDLE", "--reference", "CKPT", "--level", "deep"],
        ["validate", "BUNDLE", "--reference", "NOWHERE"],
        ["validate", "CKPT", "--reference", "CKPT"],
    ],
    ids=lambda argv: "_".join(argv[:1] + argv[-2:]),
)
def test_bad_options_of_other_verbs(
    argv: list[str], tiny: Path, tiny_bundle: Path, tmp_path: Path, cli: Cli
) -> None:
    places = {
        "CKPT": tiny,
        "BUNDLE": tiny_bundle,
        "OUT": tmp_path / "out",
        "NOWHERE": tmp_path / "no",
    }
    result = cli(*(places.get(word, word) for word in argv))
    assert result.code == 2
    assert result.message
    assert list(tmp_path.iterdir()) == []


BROKEN_BUNDLES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "graph-byte": (lambda b: flip_byte(b / "decoder.onnx"), "decoder.onnx: must have sha256"),
    "tokenizer-byte": (lambda b: flip_byte(b / "tokenizer.json"), "tokenizer.json: must have sha"),
    "weights-byte": (lambda b: flip_byte(b / "weights" / SHARD), f"{SHARD}: must have sha256"),
    "truncated-weights": (lambda b: truncate(b / "weights" / SHARD), f"{SHARD}: must have 2"),
    "deleted-weights": (lambda b: (b / "weights" / SHARD).unlink(), "it is missing"),
    "missing-manifest": (lambda b: (b / "manifest.json").unlink(), "no manifest.json"),
    "manifest-is-no-json": (lambda b: (b / "manifest.json").write_text("{"), "damaged"),
    "another-format": (
        lambda b: edit_json(b / "manifest.json", format_version=99),
        "format version must be 1, got 99",
    ),
    "missing-bundle": (shutil.rmtree, "not a bundle"),
}
FOUND_BY_VERIFY = {"graph-byte", "tokenizer-byte", "weights-byte"} | {
    "truncated-weights",
    "deleted-weights",
}


@pytest.mark.parametrize(("spoil", "expected"), BROKEN_BUNDLES.values(), ids=BROKEN_BUNDLES)
def test_broken_bundle(spoil: Callable[[Path], Any], expected: str, bundle: Path, cli: Cli) -> None:
    spoil(bundle)
    result = cli("run", bundle, "-p", "Hi")
    assert result.code == 2
    assert expected in result.message


@pytest.mark.parametrize("case", BROKEN_BUNDLES)
def test_verify_says_which_file_differs(case: str, bundle: Path, cli: Cli) -> None:
    spoil, expected = BROKEN_BUNDLES[case]
    spoil(bundle)
    result = cli("verify", bundle)
    if case not in FOUND_BY_VERIFY:
        assert result.code == 2
        assert expected in result.message
        return
    assert result.code == 1
    wrong = [line for line in result.out.splitlines() if line.startswith("✗ ")]
    assert len(wrong) == 1
    assert expected in wrong[0]
    assert sum(line.startswith("✓ ") for line in result.out.splitlines()) == 11


@pytest.mark.usefixtures("traced_before")
def test_bundle_without_every_stage(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli("export", tiny, tmp_path / "part", "--stages", "embed,projector").code == 0
    result = cli("run", tmp_path / "part", "-p", "Hi")
    assert result.code == 2
    assert "stage 'vision' is not in it" in result.message


@pytest.mark.slow
@pytest.mark.usefixtures("traced_before")
def test_bundle_in_half_precision_does_not_run_on_a_cpu(
    tiny: Path, tmp_path: Path, cli: Cli
) -> None:
    assert cli("export", tiny, tmp_path / "half", "--dtype", "float16").code == 0
    result = cli("run", tmp_path / "half", "-p", "Hi")
    assert result.code == 2
    assert "--dtype float32" in result.message


def start(*argv: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "longllava_trt", *map(str, argv)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # who starts the tests in the background has it ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["export", "NOWHERE", "OUT"], 2),
        (["run", "BUNDLE", "-p", "Hi", "--image", "NOWHERE"], 2),
        (["run", "BUNDLE", "-p", ""], 2),
        (["verify", "NOWHERE"], 2),
    ],
    ids=["checkpoint", "image", "prompt", "bundle"],
)
def test_as_a_process(argv: list[str], code: int, tiny_bundle: Path, tmp_path: Path) -> None:
    places = {"BUNDLE": tiny_bundle, "OUT": tmp_path / "out", "NOWHERE": tmp_path / "no"}
    process = start(*(places.get(word, word) for word in argv))
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_verbose_shows_where_an_error_came_from(tmp_path: Path, cli: Cli) -> None:
    result = cli("verify", tmp_path, "-v")
    assert result.code == 2
    assert result.err.startswith("Traceback")
    assert result.err.splitlines()[-1].startswith("error: ")


def test_interrupted_export_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    process = start("export", tiny, tmp_path / "bundle")
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_inside_of_executed_text_ends_like_any_other(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from longllava_trt import cli\n"
        "def run(args): exec('raise KeyboardInterrupt')\n"
        "cli.doctor.run = run\n"
        "sys.exit(cli.main(['doctor']))\n"
    )
    (tmp_path / "interrupted.py").write_text(program, encoding="utf-8")
    paths = [str(tmp_path), str(Path(__file__).resolve().parents[2])]
    done = subprocess.run(
        # as a module: only so does Python ask at its end whether an interrupt came
        [sys.executable, "-m", "interrupted"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_reader_that_leaves_is_no_error(tiny: Path) -> None:
    process = start("inspect", tiny, "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141
    process.stderr.close()
