"""Every name under which LLaVA's tensors are published becomes one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from longllava_trt.core.errors import CheckpointError
from longllava_trt.models.checkpoint import index_checkpoint
from longllava_trt.models.llava.weights import canonical_name, huggingface_name, is_tolerated
from longllava_trt.models.registry import find_preset, load_model_spec
from longllava_trt.models.tensors import expected_tensors, stored_tensors, tensor_names
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint

TOWER = "model.vision_tower.vision_tower.vision_model."
LAYER = "layers.3.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("canonical", "names"),
    [
        (
            f"model.{LAYER}",
            [f"model.{LAYER}", f"language_model.model.{LAYER}", f"model.language_model.{LAYER}"],
        ),
        ("model.norm.weight", ["language_model.model.norm.weight", "model.language_model.norm.weight"]),
        ("lm_head.weight", ["lm_head.weight", "language_model.lm_head.weight"]),
        (
            "model.mm_projector.0.bias",
            [
                "model.mm_projector.0.bias",
                "model.mm_projector.bias",
                "multi_modal_projector.linear_1.bias",
                "model.multi_modal_projector.linear_1.bias",
            ],
        ),
        (
            "model.mm_projector.2.weight",
            ["multi_modal_projector.linear_2.weight", "model.multi_modal_projector.linear_2.weight"],
        ),
        (
            f"{TOWER}encoder.layers.0.mlp.fc1.weight",
            [
                f"{TOWER}encoder.layers.0.mlp.fc1.weight",
                "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
                "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
                "vision_tower.encoder.layers.0.mlp.fc1.weight",
                "vision_model.encoder.layers.0.mlp.fc1.weight",
                "encoder.layers.0.mlp.fc1.weight",
            ],
        ),
        (f"{TOWER}pre_layrnorm.bias", ["vision_tower.pre_layrnorm.bias", "pre_layrnorm.bias"]),
        ("model.image_newline", ["model.image_newline", "image_newline"]),
    ],
)  # fmt: skip
def test_namings_become_the_originals(canonical: str, names: list[str]) -> None:
    assert {canonical_name(name) for name in names} == {canonical}


def test_saved_buffers_are_tolerated() -> None:
    assert is_tolerated("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert is_tolerated("vision_tower.vision_model.embeddings.position_ids")
    assert not is_tolerated("model.layers.0.self_attn.q_proj.weight")


def test_formats_have_the_published_keys() -> None:
    spec = find_preset("llava-1.6-tiny")
    published = set(stored_tensors(spec, "huggingface"))
    assert len(published) == len(expected_tensors(spec))
    assert {key for key in published if not re.search(r"layers\.\d", key)} == {
        "language_model.model.embed_tokens.weight",
        "language_model.model.norm.weight",
        "language_model.lm_head.weight",
        "multi_modal_projector.linear_1.weight",
        "multi_modal_projector.linear_1.bias",
        "multi_modal_projector.linear_2.weight",
        "multi_modal_projector.linear_2.bias",
        "image_newline",
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "vision_tower.vision_model.embeddings.position_embedding.weight",
        "vision_tower.vision_model.pre_layrnorm.weight",
        "vision_tower.vision_model.pre_layrnorm.bias",
        "vision_tower.vision_model.post_layernorm.weight",
        "vision_tower.vision_model.post_layernorm.bias",
    }
    for name in tensor_names(spec).values():
        assert canonical_name(name) == name
        assert canonical_name(huggingface_name(name)) == name
    linear = stored_tensors(find_preset("llava-1-tiny"), "original")
    assert {"model.mm_projector.weight", "model.mm_projector.bias"} < linear.keys()


def test_pickles_are_refused_with_the_line_that_converts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line in the error is run as it stands, on two files."""
    torch = pytest.importorskip("torch")
    import safetensors.torch

    folder = tmp_path / "model"
    write_checkpoint(folder, preset="llava-1.5-tiny")
    expected = load_model(folder).state_dict()
    files = []
    for shard in sorted(folder.glob("*.safetensors")):
        files.append(shard.with_suffix(".bin"))
        torch.save(safetensors.torch.load_file(shard), files[-1])
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="unpickling can run code") as caught:
        load_model(folder)
    line = re.search(r"safetensors\.torch\.save_file\(.*'\)", str(caught.value))
    assert line is not None
    monkeypatch.chdir(folder)
    eval(line[0], {"safetensors": safetensors, "torch": torch, "FILES": files})  # noqa: S307
    found = load_model(folder).state_dict()
    assert all(found[name].equal(value) for name, value in expected.items())


def test_a_missing_newline_and_a_tower_elsewhere(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", preset="llava-1.6-tiny")
    spec = load_model_spec(tmp_path / "model")
    shapes = expected_tensors(spec)
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / "config.json").write_text((tmp_path / "model" / "config.json").read_text())

    def save(names: set[str], where: Path, prefix: str = "") -> None:
        tensors = {name.removeprefix(prefix): np.zeros(shapes[name], np.float32) for name in names}
        save_file(tensors, where / "model.safetensors")

    save(shapes.keys() - {"model.image_newline"}, folder)
    with pytest.raises(CheckpointError, match=r"1 missing: model\.image_newline"):
        index_checkpoint(folder, spec)
    own = {name for name in shapes if name.startswith(TOWER)}
    save(shapes.keys() - own, folder)
    with pytest.raises(CheckpointError, match="names 'vision_tower'; fetch that"):
        index_checkpoint(folder, spec)
    (folder / "vision_tower").mkdir()
    save(own, folder / "vision_tower", "model.vision_tower.vision_tower.")
    assert index_checkpoint(folder, spec).keys() == shapes.keys()
