"""`longllava-trt build` and what `doctor` says of TensorRT."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.errors import LongLLaVAError
from longllava_trt.plugins_trt.registry import import_tensorrt

Cli = Callable[..., Any]
SMALL = ("--max-context", 48, "--chunk", 16, "--vision-batch", 2)


@pytest.fixture(scope="session")
def plugin_library() -> Path:
    try:
        import_tensorrt()
    except LongLLaVAError as err:
        pytest.skip(f"builds by the command line are unproven: {err}")
    from longllava_trt.plugins_trt.library.build import build_library

    return build_library(archs=[80], dtypes=["bf16"], weight_formats=["none"]).path


@pytest.fixture(scope="session")
def engines(tiny: Path, plugin_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two small stages; `build` is not called on it yet."""
    from longllava_trt.cli import main
    from tests.export.stored_traces import stored_traces, traces_folder

    bundle = tmp_path_factory.mktemp("engines") / "bundle"
    options = ["--dtype", "bfloat16", "--stages", "projector,embed", "-q"]
    with stored_traces(traces_folder(tmp_path_factory)):
        assert main(["export", str(tiny), str(bundle), *options]) == 0
    return bundle


@pytest.fixture
def bundle(engines: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(engines, tmp_path / "bundle"))


def build(cli: Cli, bundle: Path, plugins: Path, *options: Any) -> Any:
    return cli(
        "build", bundle, "--plugins", plugins, "--stages", "projector,embed", *SMALL, *options
    )


@pytest.mark.trt
def test_build_shows_what_it_built(bundle: Path, plugin_library: Path, cli: Cli) -> None:
    made = build(cli, bundle, plugin_library)
    assert made.code == 0, made.err
    lines = made.out.splitlines()
    assert lines[0].startswith("engines  sm80, tensorrt")
    assert [line.split()[0] for line in lines[2:4]] == ["projector", "embed"]
    assert "peak memory" in lines[-3]
    assert "TensorRT-RTX runs on compute capability 7.5, 8.6, 8.9, 12.x alone" in lines[-2]
    assert Path(lines[-1].removeprefix("in ")).is_dir()
    again = build(cli, bundle, plugin_library)
    assert "up to date" in again.out
    assert again.out.count("as it was") == 2
    assert "up to date" not in build(cli, bundle, plugin_library, "--force").out


@pytest.mark.trt
def test_inspect_shows_the_kernels(bundle: Path, plugin_library: Path, cli: Cli) -> None:
    build(cli, bundle, plugin_library)
    (folder,) = (bundle / "engines").iterdir()
    short = cli("inspect", folder).out
    assert [line.split()[:3] for line in short.splitlines()[2:]] == [
        ["projector", "images", "5"],
        ["embed", "chunk", "1"],
    ]
    long = cli("inspect", folder, "--kernels").out
    assert long.startswith(short)
    assert "projector, images: kind, reads, writes, kernel" in long
    assert sum(line.startswith("  gemm ") for line in long.splitlines()) == 2
    found = json.loads(cli("inspect", folder, "--kernels", "--json").out.splitlines()[-1])
    images = found["stages"]["projector"]["profiles"]["images"]
    assert (images["launches"], images["kinds"]["gemm"]) == (5, 2)
    assert any("model.mm_projector.0.weight" in t for k in images["kernels"] for t in k["inputs"])
    bare = json.loads(cli("inspect", folder, "--json").out.splitlines()[-1])
    assert "kernels" not in bare["stages"]["projector"]["profiles"]["images"]


def test_kernels_are_of_engines_alone(tiny: Path, cli: Cli) -> None:
    refused = cli("inspect", tiny, "--kernels")
    assert refused.code == 2
    assert "--kernels is for a folder with engine.json" in refused.message


@pytest.mark.trt
def test_build_json_and_a_bundle_that_still_verifies(
    bundle: Path, plugin_library: Path, cli: Cli
) -> None:
    made = build(cli, bundle, plugin_library, "--json", "-q")
    found = json.loads(made.out.splitlines()[-1])
    assert found["target"] == "sm80"
    assert found["built"] == ["projector", "embed"]
    assert found["stages"]["projector"]["num_weights"] == 4
    assert found["options"] == {
        "weights": "external",
        "max_context": 48,
        "chunk": 16,
        "vision_batch": 2,
        "sequences": 1,
    }
    assert cli("verify", bundle).code == 0
    assert cli("inspect", bundle).code == 0


@pytest.mark.trt
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--target", "sm70"), 2, "invalid choice: 'sm70'"),
        (("--flavour", "tensorrt-rtx", "--target", "sm90"), 2, "builds for sm80, .* got 'sm90'"),
        (("--chunk", 1), 2, "chunk: must be at least 2"),
        (("--stages", "decoder"), 2, "stage 'decoder' is not in it"),
        (("--stages", "prefill"), 2, "stages must be among"),
        (("--plugins", "nowhere.so"), 2, "no such plugin library"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[Any, ...],
    code: int,
    message: str,
    bundle: Path,
    plugin_library: Path,
    cli: Cli,
) -> None:
    made = build(cli, bundle, plugin_library, *options)
    assert made.code == code
    assert re.search(message, made.message)
    assert not (bundle / "engines").exists()


def test_no_bundle(tmp_path: Path, cli: Cli) -> None:
    made = cli("build", tmp_path)
    assert made.code == 2
    assert "not a bundle" in made.message


def test_no_tensorrt_names_the_extras(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n.startswith("tensorrt") else found(n)
    )
    made = cli("build", tiny_bundle)
    assert made.code == 3
    assert "longllava-trt[trt]" in made.message
    assert "longllava-trt[trt-rtx]" in made.message
    doctor = cli("doctor")
    assert doctor.code == 0
    (line,) = [line for line in doctor.out.splitlines() if line.startswith("- TensorRT ")]
    assert "is not installed" in line


@pytest.mark.trt
def test_doctor_lists_the_plugins(plugin_library: Path, cli: Cli) -> None:
    found = cli("doctor", "--plugins", plugin_library)
    assert found.code == 0
    (tensorrt,) = [line for line in found.out.splitlines() if line.startswith("✓ TensorRT ")]
    assert "builds engines for" in tensorrt
    assert "on an A100 or H100, build there with --flavour tensorrt" in tensorrt
    (plugins,) = [line for line in found.out.splitlines() if line.startswith("✓ plugins ")]
    for name in ("SelectiveScan 1", "SparseMoE 1", "CausalConvWithState 1"):
        assert name in plugins


@pytest.mark.trt
def test_doctor_names_a_library_that_is_none(
    plugin_library: Path, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "plugins.so").write_text("no library")
    found = cli("doctor", "--plugins", tmp_path / "plugins.so", "--json")
    assert found.code == 3
    document = json.loads(found.out.splitlines()[-1])
    (finding,) = [f for f in document["findings"] if f["topic"] == "plugins"]
    assert finding["status"] == "failed"
    assert "cannot be loaded" in finding["detail"]
