"""Synthetic checkpoints and their tokenizer: the original's format, the same bytes every time, all or nothing."""

import hashlib
import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from longllava_trt.core.errors import InputError
from longllava_trt.core.safetensors_header import read_tensor
from longllava_trt.models.checkpoint import index_checkpoint
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.models.registry import load_model_spec
from longllava_trt.models.spec import AttentionSpec, ExpertsSpec
from longllava_trt.models.tensors import expected_tensors
from longllava_trt.reference.synthetic import weights
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from longllava_trt.reference.synthetic.tokenizer import BYTE_IDS, tokenizer_files, train_tokenizer
from longllava_trt.reference.synthetic.weights import draw_tensor

SMALL = ["tiny", "tiny-dense"]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("preset", SMALL)
def test_write_checkpoint_then_everything_reads_it(tmp_path: Path, preset: str, dtype: str) -> None:
    files = write_checkpoint(tmp_path / "out", preset=preset, dtype=dtype)
    folder = tmp_path / "out"
    config = load_model_spec(folder)
    assert config == replace(PRESETS[preset], torch_dtype=dtype)
    sources = index_checkpoint(folder, config)
    assert {source.dtype for source in sources.values()} == {dtype}
    name = "model.layers.1.mamba.x_proj.weight"
    path = name.removeprefix("model.")
    drawn = draw_tensor(path, sources[name].shape, name=name, seed=0)
    want = drawn.astype(sources_dtype(dtype))
    np.testing.assert_array_equal(read_tensor(sources[name], folder), want)
    assert sorted(files) == sorted(p for p in folder.rglob("*") if p.is_file())
    assert sum(p.stat().st_size for p in files) < 10e6


def sources_dtype(name: str) -> np.dtype[np.generic]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def test_shards_and_index_agree_with_the_safetensors_library(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_checkpoint(folder, preset="tiny", shard_bytes=2**20)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    seen: dict[str, tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as shard:
            seen |= {key: (path.name, shard.get_tensor(key)) for key in shard.keys()}  # noqa: SIM118
        assert path.stat().st_size < 2**20 + 2**16
    assert {key: name for key, (name, _) in seen.items()} == index["weight_map"]
    assert sum(array.nbytes for _, array in seen.values()) == index["metadata"]["total_size"]
    assert {k: a.shape for k, (_, a) in seen.items()} == expected_tensors(PRESETS["tiny"])
    assert all(np.isfinite(array).all() for _, array in seen.values())


def test_default_shard_size_still_gives_two_shards(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out", preset="tiny")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) >= 2


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        write_checkpoint(tmp_path / name, preset="tiny", seed=seed)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert {k for k in a if a[k] != c[k]} == {k for k in a if k.endswith(".safetensors")}


def test_draw_tensor_depends_on_name_and_seed_alone() -> None:
    path, name = "layers.0.mamba.in_proj.weight", "any.name"
    first = draw_tensor(path, (8, 4), name=name, seed=1)
    draw_tensor("lm_head.weight", (300, 4), name=name, seed=1)
    np.testing.assert_array_equal(draw_tensor(path, (8, 4), name=name, seed=1), first)
    assert not np.array_equal(draw_tensor(path, (8, 4), name=name, seed=2), first)
    assert not np.array_equal(draw_tensor(path, (8, 4), name="other", seed=1), first)


def test_weights_follow_their_distributions() -> None:
    bias = draw_tensor("layers.0.mamba.dt_proj.bias", (10_000,), name="a", seed=0)
    step = np.log1p(np.exp(bias.astype(np.float64)))
    assert 0.99e-3 < step.min() < 1.1e-3
    assert 0.9e-1 < step.max() < 1.01e-1
    assert abs(np.log(step).mean() - np.log(1e-2)) < 0.05
    decay = draw_tensor("layers.0.mamba.A_log", (500, 16), name="a", seed=0).mean(axis=0)
    np.testing.assert_allclose(decay, np.log(np.arange(1, 17)), atol=0.02)
    head = draw_tensor("lm_head.weight", (512, 64), name="a", seed=0)
    assert not head[:4].any()
    logits = head @ np.random.default_rng(0).standard_normal((64, 200), dtype=np.float32)
    assert 2 < logits[BYTE_IDS.stop :].std() < 4
    assert logits[BYTE_IDS.start : BYTE_IDS.stop].std() < 1.5
    conv = draw_tensor("layers.0.mamba.conv1d.weight", (4096, 1, 4), name="a", seed=0)
    assert abs(conv.std() - 0.5) < 0.02


def test_mini_has_the_measured_shape() -> None:
    decoder = PRESETS["mini"].decoder
    assert (decoder.hidden_size, decoder.mamba_layers[0].dt_rank) == (512, 32)
    assert decoder.moe_layers[1] == ExpertsSpec(num_experts=16, top_k=2, intermediate_size=1792)
    assert decoder.attention_layers[4] == AttentionSpec(num_heads=8, num_kv_heads=2, head_dim=64)
    for config in PRESETS.values():
        assert set(config.decoder.layer_kinds) == {"attention", "mamba"}
        assert config.num_image_tokens == 144


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "preset must be one of tiny"),
        ({"dtype": "int8"}, "dtype must be one of float32"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"shard_bytes": 0}, "shard_bytes >= 1"),
    ],
    ids=["preset", "dtype", "seed", "shard-bytes"],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    write: Callable[..., object] = write_checkpoint
    with pytest.raises(InputError, match=message):
        write(tmp_path / "out", **({"preset": "tiny"} | arguments))
    assert not list(tmp_path.iterdir())


def test_a_taken_folder_is_kept_unless_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    write_checkpoint(folder, preset="tiny")
    before = digests(folder)
    with pytest.raises(InputError, match="must be absent or empty"):
        write_checkpoint(folder, preset="tiny", seed=1)
    assert digests(folder) == before
    (folder / "stale").touch()
    write_checkpoint(folder, preset="tiny", seed=1, overwrite=True)
    assert digests(folder) != before
    assert digests(folder).keys() == before.keys()
    assert list(tmp_path.iterdir()) == [folder]


def test_overwrite_never_removes_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(InputError, match="none of ours"):
        write_checkpoint(tmp_path / "out", preset="tiny", overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_a_failure_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    folder = tmp_path / "out"
    if overwrite:
        write_checkpoint(folder, preset="tiny")
    before = digests(tmp_path)

    def fail(path: str, shape: tuple[int, ...], *, name: str, seed: int) -> None:
        if "layers.5" in path:
            raise OSError(28, "No space left on device")
        return real(path, shape, name=name, seed=seed)  # type: ignore[return-value]

    real = draw_tensor
    monkeypatch.setattr(weights, "draw_tensor", fail)
    with pytest.raises(InputError, match="No space left on device"):
        write_checkpoint(folder, preset="tiny", seed=1, overwrite=overwrite)
    assert digests(tmp_path) == before
    assert list(tmp_path.iterdir()) == ([folder] if overwrite else [])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(train_tokenizer(512))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("<img>", ["<", "img", ">"]),
        ("</img>\n", ["</", "img", ">", "<0x0A>"]),
        ("<|User|>\n", ["<", "|", "User", "|>", "<0x0A>"]),
        ("<|Assistant|>", ["<", "|", "Assistant", "|>"]),
        ("<|startoftext|><|User|>", ["<|startoftext|>", "<", "|", "User", "|>"]),
        ("<vid><img>", ["<", "vid", "><", "img", ">"]),
        ("</img><t><img>", ["</", "img", "><", "t", "><", "img", ">"]),
        ("</img></vid>", ["</", "img", "></", "vid", ">"]),
        ("</img</vid>", ["</", "img", "</", "vid", ">"]),
    ],
)
def test_markers_split_as_in_the_published_tokenizer(
    tokenizer: Tokenizer, text: str, pieces: list[str]
) -> None:
    encoding = tokenizer.encode(text)
    assert encoding.tokens == pieces
    assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text


def test_any_text_round_trips(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    points = [chr(p) for p in rng.integers(0, 0x110000, 3000).tolist()]
    # surrogates are no text; the form itself reads U+2581 as a space
    noise = "".join(c for c in points if unicodedata.category(c) != "Cs" and c != "▁")
    for text in (noise, "  two  spaces ", "\r\n\t\0", "héllo 漢字 🎉", "<0x41>", "", "10:25"):
        ids = tokenizer.encode(text).ids
        assert 3 not in ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_tokenizer_has_the_published_form(tokenizer: Tokenizer) -> None:
    files = tokenizer_files(512)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    state = json.loads(files["tokenizer.json"])
    assert state["pre_tokenizer"] is state["post_processor"] is None
    assert state["normalizer"]["content"] == "▁"
    assert [d["type"] for d in state["decoder"]["decoders"]] == ["Replace", "ByteFallback", "Fuse"]
    assert [t["id"] for t in state["added_tokens"]] == [0, 1, 2, 3]
    assert sorted(state["model"]["vocab"].values()) == list(range(512))
    assert tokenizer.id_to_token(BYTE_IDS.start) == "<0x00>"
    assert tokenizer.id_to_token(BYTE_IDS.stop - 1) == "<0xFF>"
    assert json.loads(files["tokenizer_config.json"])["bos_token"] == tokenizer.id_to_token(1)


def test_tokenizer_is_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from longllava_trt.reference.synthetic.tokenizer import train_tokenizer;"
        "print(hashlib.sha256(train_tokenizer(512).encode()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout.strip()
    assert other == hashlib.sha256(train_tokenizer(512).encode()).hexdigest()


@pytest.mark.parametrize("vocab_size", [100, 300, 50_000])
def test_a_vocabulary_the_text_cannot_fill_is_refused(vocab_size: int) -> None:
    with pytest.raises(InputError, match="choose about 512"):
        train_tokenizer(vocab_size)
