"""Checkpoints of the published sizes: every header and name, next to no disk; and refusals before anything is written."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from longllava_trt.core.errors import CheckpointError, InputError
from longllava_trt.core.safetensors_header import read_tensor
from longllava_trt.models.checkpoint import index_checkpoint
from longllava_trt.models.llava_jamba.presets import PRESETS, PUBLISHED
from longllava_trt.models.registry import load_model_spec
from longllava_trt.models.spec import VisionSpec
from longllava_trt.models.tensors import expected_tensors
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from longllava_trt.reference.synthetic.presets import preset_config
from longllava_trt.reference.synthetic.tokenizer import TEXT_VOCABULARY
from longllava_trt.reference.synthetic.weights import draw_tensor

CONFIGS = Path(__file__).parents[1] / "cli" / "data"
MODELS = [
    pytest.param("9b", [4.91, 4.94, 4.94, 4.44], 910, 9_615_177_600, id="9b"),
    pytest.param("53b", 22, 1646, 51_894_810_496, id="53b"),
]


def disk_bytes(folder: Path) -> int:
    return 512 * sum(path.stat().st_blocks for path in folder.rglob("*"))


@pytest.mark.parametrize(("preset", "shards", "tensors", "parameters"), MODELS)
def test_published_sizes_in_the_published_shards(
    tmp_path: Path, preset: str, shards: list[float] | int, tensors: int, parameters: int
) -> None:
    write_checkpoint(tmp_path, preset=preset, sparse=True)
    config = load_model_spec(tmp_path)
    assert config == PRESETS[preset]
    sources = index_checkpoint(tmp_path, config)
    assert len(sources) == tensors
    assert sum(math.prod(source.shape) for source in sources.values()) == parameters
    assert {source.dtype for source in sources.values()} == {"bfloat16"}
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.safetensors"))]
    if isinstance(shards, list):
        # the hub shows these
        assert [round(size / 1e9, 2) for size in sizes] == shards
    else:
        assert len(sizes) == shards
    assert sum(sizes) > 2 * parameters
    assert disk_bytes(tmp_path) < 1e6


@pytest.mark.parametrize("preset", sorted(PUBLISHED))
def test_files_are_those_of_the_published_checkpoints(tmp_path: Path, preset: str) -> None:
    files = write_checkpoint(tmp_path, preset=preset, sparse=True)
    got, want = (json.loads((f / "config.json").read_text()) for f in (tmp_path, CONFIGS / preset))
    assert got == want
    assert load_model_spec(tmp_path).vision == VisionSpec()
    others = {path.name for path in files if path.suffix != ".safetensors"}
    assert others == {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) == TEXT_VOCABULARY


def test_the_safetensors_library_reads_zeros(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, preset="9b", sparse=True, dtype="float16")
    with safe_open(tmp_path / "model-00004-of-00004.safetensors", "np") as shard:
        bias = shard.get_tensor("model.mm_projector.0.bias")
    assert bias.shape == (4096,)
    assert bias.dtype == np.float16
    assert not bias.any()


@pytest.mark.parametrize("preset", ["tiny", "mini"])
def test_every_preset_can_be_sparse(tmp_path: Path, preset: str) -> None:
    write_checkpoint(tmp_path, preset=preset, sparse=True)
    sources = index_checkpoint(tmp_path, load_model_spec(tmp_path))
    assert {name: s.shape for name, s in sources.items()} == expected_tensors(PRESETS[preset])
    assert not np.any(read_tensor(sources["model.final_layernorm.weight"], tmp_path))
    assert disk_bytes(tmp_path) < 1e6


def test_a_sparse_shard_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, preset="53b", sparse=True)
    shard = tmp_path / "model-00007-of-00022.safetensors"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"model-00007-of-00022\.safetensors is cut off"):
        index_checkpoint(tmp_path, load_model_spec(tmp_path))


def test_the_first_layers_are_those_of_the_whole_model(tmp_path: Path) -> None:
    for name, layers in (("whole", None), ("part", 2)):
        write_checkpoint(tmp_path / name, preset="tiny", layers=layers)
    config = load_model_spec(tmp_path / "part")
    assert config.decoder.num_layers == 2
    part = index_checkpoint(tmp_path / "part", config)
    whole = index_checkpoint(tmp_path / "whole", load_model_spec(tmp_path / "whole"))
    for name, source in part.items():
        np.testing.assert_array_equal(
            read_tensor(source, tmp_path / "part"),
            read_tensor(whole[name], tmp_path / "whole"),
        )
    assert all(".layers." in name for name in whole.keys() - part.keys())


def test_layers_of_a_published_size_keep_its_shapes() -> None:
    part = expected_tensors(preset_config("53b", 2))
    whole = expected_tensors(PRESETS["53b"])
    assert part.items() <= whole.items()
    assert "model.layers.1.moe.experts.15.down_proj.weight" in part


def test_ids_without_a_text_are_never_the_best() -> None:
    head = draw_tensor("lm_head.weight", (TEXT_VOCABULARY + 100, 8), name="a", seed=0)
    assert not head[TEXT_VOCABULARY:].any()
    assert head[TEXT_VOCABULARY - 1].any()


REFUSALS = [
    pytest.param(
        {"preset": "9b"}, r"19230355200 bytes \(19\.2 GB\).*--sparse.*--layers N", id="9b"
    ),
    pytest.param({"preset": "53b"}, r"103789620992 bytes \(103\.8 GB\).*--layers 32 to", id="53b"),
    pytest.param({"preset": "9b", "dtype": "float32"}, "38460710400 bytes", id="9b-float32"),
    pytest.param({"preset": "9b", "layers": 33}, "must be from 1 to 32, got 33", id="too-many"),
    pytest.param({"preset": "tiny", "layers": 0}, "must be from 1 to 8, got 0", id="none"),
    pytest.param({"preset": "9b", "layers": 3}, r"but .* has 1\.0 GB free", id="no-room"),
    pytest.param(
        {"preset": "mini"}, r"8 layers would write .* has 0\.0 GB free", id="mini-no-room"
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS)
def test_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, object], message: str
) -> None:
    free = 0 if arguments["preset"] == "mini" else 10**9
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    write: Callable[..., object] = write_checkpoint
    with pytest.raises(InputError, match=message):
        write(tmp_path / "deep" / "out", **arguments)
    assert not list(tmp_path.iterdir())
