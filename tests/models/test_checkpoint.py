"""Checkpoint headers: both namings and packed experts give the same bytes; every damaged file is named."""

import json
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from longllava_trt.core.errors import CheckpointError
from longllava_trt.core.safetensors_header import read_tensor
from longllava_trt.models.checkpoint import CheckpointIndex, index_checkpoint
from longllava_trt.models.llava_jamba.family import FAMILY
from longllava_trt.models.llava_jamba.presets import compose
from longllava_trt.models.llava_jamba.weights import VISION_PREFIX
from longllava_trt.models.parameters import VISION, unused_parameters
from longllava_trt.models.spec import VisionSpec
from longllava_trt.models.tensors import expected_tensors

Arrays = dict[str, npt.NDArray[np.float32]]

CONFIG = compose(
    VisionSpec(hidden_size=6, intermediate_size=10, num_layers=2, num_heads=2, image_size=28),
    vocab_size=11, hidden_size=4, intermediate_size=6, num_hidden_layers=3,
    num_attention_heads=2, num_key_value_heads=1, attn_layer_period=3, attn_layer_offset=2,
    expert_layer_period=2, expert_layer_offset=1, num_experts=3, num_experts_per_tok=2,
    mamba_d_state=5, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=3, rms_norm_eps=1e-6,
)  # fmt: skip
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


@pytest.fixture
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape, dtype=np.float32)
        for name, shape in expected_tensors(CONFIG).items()
    }


def save_shards(folder: Path, arrays: Arrays) -> Path:
    folder.mkdir(exist_ok=True)
    keys = list(arrays)
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    for shard, half in zip(SHARDS, halves, strict=True):
        save_file({key: arrays[key] for key in half}, folder / shard)
    weight_map = {key: shard for shard, half in zip(SHARDS, halves, strict=True) for key in half}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def save_single(folder: Path, arrays: Arrays) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(dict(arrays), folder / "model.safetensors")
    return folder


def write_raw(path: Path, header: object, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def in_transformers_naming(arrays: Arrays, *, packed: bool) -> Arrays:
    """Rename by a table of our own, and pack layer 1's experts if asked."""
    table = (
        (r"pre_moe_layernorm", "pre_ff_layernorm"),
        (r"B_layernorm", "b_layernorm"),
        (r"C_layernorm", "c_layernorm"),
        (r"(layers\.[02]\.)moe\.experts\.0", r"\1feed_forward"),
        (r"moe\.", "feed_forward."),
        (r"model\.vision_tower\.vision_tower\.", ""),
    )
    renamed = {}
    for name, array in arrays.items():
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        renamed[name] = array
    if packed:
        experts = "model.layers.1.feed_forward.experts."
        gate, up, down = (
            [renamed.pop(f"{experts}{e}.{kind}_proj.weight") for e in range(3)]
            for kind in ("gate", "up", "down")
        )
        renamed[f"{experts}gate_up_proj"] = np.stack(
            [np.concatenate(pair) for pair in zip(gate, up, strict=True)]
        )
        renamed[f"{experts}down_proj"] = np.stack(down)
    return renamed


@pytest.mark.parametrize("save", [save_single, save_shards], ids=["single", "shards"])
@pytest.mark.parametrize(
    "naming",
    [
        lambda arrays: arrays,
        lambda arrays: in_transformers_naming(arrays, packed=False),
        lambda arrays: in_transformers_naming(arrays, packed=True),
    ],
    ids=["original", "transformers", "packed"],
)
def test_index_reads_the_same_bytes_under_every_naming(
    tmp_path: Path,
    arrays: Arrays,
    save: Callable[[Path, Arrays], Path],
    naming: Callable[[Arrays], Arrays],
) -> None:
    folder = save(tmp_path, naming(arrays))
    sources = index_checkpoint(folder, CONFIG)
    assert list(sources) == list(expected_tensors(CONFIG))
    for name, source in sources.items():
        np.testing.assert_array_equal(read_tensor(source, folder), arrays[name])
        raw = (folder / source.file).read_bytes()[source.offset :][: source.nbytes]
        assert raw == arrays[name].tobytes()
        assert source.file.parent == Path()


def test_index_tells_swapped_experts_apart(tmp_path: Path, arrays: Arrays) -> None:
    renamed = in_transformers_naming(arrays, packed=True)
    key = "model.layers.1.feed_forward.experts.gate_up_proj"
    renamed[key] = np.ascontiguousarray(renamed[key][::-1])
    sources = index_checkpoint(save_single(tmp_path, renamed), CONFIG)
    name = "model.layers.1.moe.experts.0.gate_proj.weight"
    assert not np.array_equal(read_tensor(sources[name], tmp_path), arrays[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_read_tensor_maps_every_dtype_read_only(tmp_path: Path, dtype: npt.DTypeLike) -> None:
    want = np.arange(15).reshape(3, 5).astype(dtype)
    save_file({"x": want}, tmp_path / "model.safetensors")
    source = CheckpointIndex.open(tmp_path, FAMILY).tensors["x"]
    got = read_tensor(source, tmp_path)
    assert source.dtype == np.dtype(dtype).name
    assert isinstance(got, np.memmap)
    assert not got.flags.writeable
    np.testing.assert_array_equal(got, want)
    assert got.dtype == want.dtype


def test_index_tolerates_position_ids(tmp_path: Path, arrays: Arrays) -> None:
    ids = {VISION_PREFIX + "embeddings.position_ids": np.arange(5)}
    save_file(arrays | ids, tmp_path / "model.safetensors")
    assert len(index_checkpoint(tmp_path, CONFIG)) == len(arrays)


def test_index_lists_every_difference_in_one_error(tmp_path: Path, arrays: Arrays) -> None:
    del arrays["lm_head.weight"]
    save_file(
        arrays
        | {
            "stranger": np.zeros(2, np.float32),
            "model.final_layernorm.weight": np.zeros(5, np.float32),
            "model.mm_projector.0.bias": np.zeros(4, np.float64),
        },
        tmp_path / "model.safetensors",
    )
    with pytest.raises(CheckpointError) as caught:
        index_checkpoint(tmp_path, CONFIG)
    for part in (
        "1 missing: lm_head.weight",
        "1 left over: stranger",
        "1 misshapen: model.final_layernorm.weight must be [4], got [5]",
        "model.mm_projector.0.bias F64",
    ):
        assert part in str(caught.value)


def test_index_caps_long_lists_and_keeps_the_count(tmp_path: Path) -> None:
    save_file({"lm_head.weight": np.zeros((11, 4), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\d+ missing: .* and \d+ more") as caught:
        index_checkpoint(tmp_path, CONFIG)
    missing = len(expected_tensors(CONFIG)) - 1 - len(unused_parameters(CONFIG))
    assert f"{missing} missing" in str(caught.value)
    assert f"and {missing - 20} more" in str(caught.value)


def test_read_tensor_refuses_a_dtype_it_does_not_know(tmp_path: Path) -> None:
    save_file({"x": np.zeros(3, np.int64)}, tmp_path / "model.safetensors")
    source = CheckpointIndex.open(tmp_path, FAMILY).tensors["x"]
    with pytest.raises(CheckpointError, match="I64"):
        read_tensor(source, tmp_path)


def test_packed_experts_of_an_odd_shape_are_refused(tmp_path: Path) -> None:
    key = "model.layers.1.feed_forward.experts.gate_up_proj"
    save_file({key: np.zeros((3, 7, 4), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot be cut into experts.*\[3, 7, 4\]"):
        CheckpointIndex.open(tmp_path, FAMILY)


def test_two_keys_of_one_tensor_are_refused(tmp_path: Path, arrays: Arrays) -> None:
    arrays["model.layers.0.pre_ff_layernorm.weight"] = np.ones(4, np.float32)
    with pytest.raises(CheckpointError, match=r"second copy of 'model\.layers\.0\.pre_moe"):
        index_checkpoint(save_single(tmp_path, arrays), CONFIG)


def drop_shard(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()


def cut_shard(folder: Path) -> None:
    data = (folder / SHARDS[1]).read_bytes()
    (folder / SHARDS[1]).write_bytes(data[:-1])


def lengthen_shard(folder: Path) -> None:
    with (folder / SHARDS[1]).open("ab") as file:
        file.write(b"\0")


def cut_header(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[1]).read_bytes()[:40])


def empty_shard(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes(b"")


def pointer_shard(folder: Path) -> None:
    (folder / SHARDS[1]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def break_json(folder: Path) -> None:
    write_raw(folder / SHARDS[1], b'{"x": ', b"")


def overlap(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    write_raw(folder / SHARDS[1], {"x": entry, "y": entry}, b"\0" * 4)


def lie_about_size(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}
    write_raw(folder / SHARDS[1], {"x": entry}, b"\0" * 4)


def forget_offsets(folder: Path) -> None:
    write_raw(folder / SHARDS[1], {"x": {"dtype": "F32", "shape": [1]}}, b"\0" * 4)


def header_is_a_list(folder: Path) -> None:
    write_raw(folder / SHARDS[1], [], b"")


def edit_index(folder: Path, **changes: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= changes
    (folder / INDEX).write_text(json.dumps(index))


def index_names_more(folder: Path) -> None:
    edit_index(folder, ghost=SHARDS[0])


def index_points_outside(folder: Path) -> None:
    edit_index(folder, ghost="../secret.safetensors")


def index_is_broken(folder: Path) -> None:
    (folder / INDEX).write_text("{")


def index_is_empty(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {}}')


def index_is_missing(folder: Path) -> None:
    (folder / INDEX).unlink()


def index_forgets(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["lm_head.weight"]
    (folder / INDEX).write_text(json.dumps(index))


def repeat_tensor(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[0]).read_bytes())


def add_single_file(folder: Path) -> None:
    save_file({"x": np.zeros(1)}, folder / "model.safetensors")


def leave_pickles(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "pytorch_model.bin").touch()


def leave_nothing(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_shard, "00002-of-00002.safetensors is missing"),
        (cut_shard, "00002-of-00002.safetensors is cut off"),
        (lengthen_shard, "is too long"),
        (cut_header, "cut off or no safetensors file"),
        (empty_shard, "cut off or no safetensors file"),
        (pointer_shard, "cut off or no safetensors file"),
        (break_json, "header that cannot be read"),
        (overlap, "overlap or leave gaps"),
        (lie_about_size, "does not take bytes 0 to 4"),
        (forget_offsets, "header that cannot be read"),
        (header_is_a_list, "header that cannot be read"),
        (index_names_more, "00001-of-00002.safetensors, which lacks them: ghost"),
        (index_points_outside, "'../secret.safetensors'"),
        (index_is_broken, "must be JSON with a 'weight_map'"),
        (index_is_empty, "got none"),
        (index_is_missing, "without an index"),
        (index_forgets, "that model.safetensors.index.json does not know: lm_head.weight"),
        (repeat_tensor, "in model-00002-of-00002.safetensors and in another shard too: "),
        (add_single_file, "got both"),
        (leave_pickles, "only safetensors are read"),
        (leave_nothing, "no weights at all"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_open_names_what_is_wrong_with_the_files(
    tmp_path: Path, arrays: Arrays, damage: Callable[[Path], None], message: str
) -> None:
    folder = save_shards(tmp_path / "checkpoint", arrays)
    damage(folder)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        CheckpointIndex.open(folder, FAMILY)
    assert str(folder) in str(caught.value)


def test_open_lists_both_damaged_shards(tmp_path: Path, arrays: Arrays) -> None:
    folder = save_shards(tmp_path, arrays)
    cut_shard(folder)
    (folder / SHARDS[0]).unlink()
    with pytest.raises(CheckpointError, match=r"00001.* is missing; .*00002.* is cut off"):
        CheckpointIndex.open(folder, FAMILY)


def test_open_says_when_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is none"):
        CheckpointIndex.open(tmp_path / "nowhere", FAMILY)


def clip_arrays(arrays: Arrays) -> Arrays:
    """A whole CLIP checkpoint whose vision weights differ from the bundled ones."""
    tower = {
        "vision_model." + name.removeprefix(VISION_PREFIX): array + 1
        for name, array in arrays.items()
        if name.startswith(VISION_PREFIX)
    }
    return tower | {
        "text_model.encoder.layers.0.mlp.fc1.bias": np.zeros(2, np.float32),
        "logit_scale": np.zeros((), np.float32),
    }


@pytest.mark.parametrize("bundled", [True, False], ids=["bundled", "decoder-only"])
def test_vision_tower_of_another_folder_replaces_the_bundled_one(
    tmp_path: Path, arrays: Arrays, bundled: bool
) -> None:
    own = {k: v for k, v in arrays.items() if bundled or not k.startswith(VISION_PREFIX)}
    folder = save_single(tmp_path / "checkpoint", own)
    tower = save_single(tmp_path / "clip", clip_arrays(arrays))
    sources = index_checkpoint(folder, CONFIG, vision_tower=tower)
    for name, array in arrays.items():
        want = array + 1 if name.startswith(VISION_PREFIX) else array
        np.testing.assert_array_equal(read_tensor(sources[name], folder), want)


@pytest.mark.parametrize(("layer", "fits"), [(1, True), (0, False)])
def test_only_layers_after_the_feature_may_be_absent(
    tmp_path: Path, arrays: Arrays, layer: int, fits: bool
) -> None:
    folder = save_single(tmp_path / "checkpoint", arrays)
    clip = {k: v for k, v in clip_arrays(arrays).items() if f".layers.{layer}." not in k}
    tower = save_single(tmp_path / "clip", clip)
    if not fits:
        with pytest.raises(CheckpointError, match=r"16 missing: .*encoder\.layers\.0\."):
            index_checkpoint(folder, CONFIG, vision_tower=tower)
        return
    found = index_checkpoint(folder, CONFIG, vision_tower=tower)
    absent = expected_tensors(CONFIG).keys() - found.keys()
    assert len(absent) == 16
    assert all(".encoder.layers.1." in name for name in absent)


def test_a_tower_that_is_nowhere_is_asked_for(tmp_path: Path, arrays: Arrays) -> None:
    prefix = FAMILY.tensor_name(VISION)
    rest = {k: v for k, v in arrays.items() if not k.startswith(prefix)}
    folder = save_single(tmp_path / "checkpoint", rest)
    with pytest.raises(CheckpointError) as caught:
        index_checkpoint(folder, replace(CONFIG, tower="openai/some-clip"))
    assert str(caught.value) == (
        f"{folder}: has no vision tower among its weights; config.json names 'openai/some-clip'; fetch that and give "
        "its folder with --vision-tower"
    )
    save_single(folder / "tower", clip_arrays(arrays))
    assert index_checkpoint(folder, replace(CONFIG, tower="tower")).keys() == arrays.keys()
