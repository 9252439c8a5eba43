"""A whole bundle on our kernels' plain versions: stages, questions about pictures, and saved sessions answer as on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longllava_trt.core.errors import ContractError, InputError, ManifestError
from longllava_trt.core.manifest import VISION_CONFIG_FOLDER
from longllava_trt.runtime.model import LongLLaVA, RunOptions

pytestmark = pytest.mark.usefixtures("plain_versions")

COLOURS = ("red", "green", "blue")
QUESTION = "What is this?"


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40 + 9 * n, 30), colour) for n, colour in enumerate(COLOURS)]


@pytest.fixture(scope="module")
def ort(tiny_bundle: Path) -> LongLLaVA:
    return LongLLaVA.from_bundle(tiny_bundle, RunOptions(backend="ort", num_threads=1))


@pytest.fixture
def model(tiny_bundle: Path) -> LongLLaVA:
    options = RunOptions(backend="kernels", chunk_size=200, vision_batch=2, max_context=4000)
    return LongLLaVA.from_bundle(tiny_bundle, options)


def test_stages_give_what_onnx_runtime_gives(ort: LongLLaVA, model: LongLLaVA) -> None:
    rng = np.random.default_rng(0)
    pixels = {"pixel_values": rng.standard_normal((2, 3, 336, 336)).astype(np.float32)}
    features = ort.runner.vision.run(pixels)
    np.testing.assert_allclose(
        model.runner.vision.run(pixels)["image_features"], features["image_features"], atol=2e-5
    )
    np.testing.assert_allclose(
        model.runner.projector.run(features)["image_embeds"],
        ort.runner.projector.run(features)["image_embeds"],
        atol=2e-5,
    )
    ids = [1, 511, 7]
    assert (model.runner.embed_tokens(ids) == ort.runner.embed_tokens(ids)).all()


def test_answers_are_onnx_runtimes(ort: LongLLaVA, model: LongLLaVA) -> None:
    want = ort.generate(QUESTION, pictures(), max_new_tokens=4)
    assert model.generate(QUESTION, pictures(), max_new_tokens=4).token_ids == want.token_ids


def test_a_session_saved_on_one_backend_goes_on_on_the_other(
    ort: LongLLaVA, model: LongLLaVA, tmp_path: Path
) -> None:
    session = model.session(checkpoint_every=1)
    session.ingest(pictures())
    session.save(tmp_path / "session")
    ours, theirs = (m.load_session(tmp_path / "session") for m in (model, ort))
    want = session.ask(QUESTION, max_new_tokens=3).token_ids
    assert ours.ask(QUESTION, max_new_tokens=3).token_ids == want
    assert theirs.ask(QUESTION, max_new_tokens=3).token_ids == want


def test_sizes_are_those_of_where_it_runs(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    runner = LongLLaVA.from_bundle(tiny_bundle, RunOptions(backend="kernels")).runner
    assert (runner.backend.name, runner.chunk_size, runner.vision_batch) == ("kernels", 512, 4)
    monkeypatch.setattr(runner.backend, "_device", torch.device("cuda"))
    limits = runner.backend.limits
    assert (limits.preferred_chunk, limits.preferred_vision_batch) == (4096, 16)


def test_another_scan_is_refused_off_a_gpu(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="mamba-ssm runs on an NVIDIA GPU only"):
        LongLLaVA.from_bundle(tiny_bundle, RunOptions(backend="kernels", scan="mamba-ssm"))


def test_bad_input_to_a_stage_is_refused(model: LongLLaVA) -> None:
    with pytest.raises(ContractError, match="'pixel_values' must be"):
        model.runner.vision.run({"pixel_values": np.zeros((1, 3, 10, 10), np.float32)})
    with pytest.raises(InputError, match="ids must be from 0 to 511, got -1 to 512"):
        model.runner.embed_tokens([-1, 512])


def test_a_bundle_that_does_not_name_its_vision_tower_is_refused(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    from longllava_trt.core.manifest import Manifest
    from longllava_trt.runtime.backends.kernels.backend import KernelsBackend

    (tmp_path / "config.json").write_bytes((tiny_bundle / "config.json").read_bytes())
    assert (tiny_bundle / VISION_CONFIG_FOLDER / "config.json").is_file()
    with pytest.raises(ManifestError, match=r"not say how its model is built .* export it"):
        KernelsBackend(tmp_path, Manifest.load(tiny_bundle), max_context=100, chunk_size=10)
