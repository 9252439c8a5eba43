"""TensorRT is found in either flavour, and plugin libraries are taken or refused with a reason."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.errors import InputError, MissingDependencyError
from longllava_trt.plugins_trt import registry
from longllava_trt.plugins_trt.device import current_target
from longllava_trt.plugins_trt.registry import TensorRT, import_tensorrt, load_plugins


@pytest.fixture(scope="module")
def tensorrt() -> TensorRT:
    try:
        return import_tensorrt()
    except MissingDependencyError as err:
        pytest.skip(f"loading plugins into TensorRT is unproven: {err}")


@pytest.mark.parametrize(
    ("flavour", "extras"),
    [
        ("tensorrt", ["longllava-trt[trt]"]),
        ("tensorrt-rtx", ["longllava-trt[trt-rtx]"]),
        ("auto", ["longllava-trt[trt]", "longllava-trt[trt-rtx]"]),
    ],
)
def test_absent_tensorrt_names_the_extra(
    flavour: str, extras: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        import_tensorrt(flavour)
    assert [extra for extra in extras if extra in str(caught.value)] == extras


def test_a_broken_tensorrt_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    spec = importlib.machinery.ModuleSpec("tensorrt", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(MissingDependencyError, match=r"cannot be loaded \(libnvinfer.*reinstall"):
        import_tensorrt("tensorrt")


def test_an_unknown_flavour_is_refused() -> None:
    with pytest.raises(InputError, match="must be one of auto, tensorrt, tensorrt-rtx, got 'trt'"):
        import_tensorrt("trt")


def test_the_tag_names_a_folder() -> None:
    found = TensorRT(flavour="tensorrt-rtx", version="1.7.1.116", module=None)
    assert found.tag == "trtrtx-1.7.1"


@pytest.mark.trt
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such plugin library"),
        (b"not a library", "cannot be loaded"),
    ],
    ids=["missing", "text"],
)
def test_what_is_no_library_is_refused(
    content: bytes | None, message: str, tensorrt: TensorRT, tmp_path: Path
) -> None:
    file = tmp_path / "plugins.so"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=f"{message}.*leave --plugins out"):
        load_plugins(tensorrt, file)


class _Creator:
    def __init__(self, name: str, version: str = "1", namespace: str = "") -> None:
        self.name, self.plugin_version, self.plugin_namespace = name, version, namespace


class _Registry:
    """Stands for TensorRT's registry: a library is the creators named in its file."""

    def __init__(self) -> None:
        self.all_creators = [_Creator("ROIAlign_TRT", "2")]

    def load_library(self, path: str) -> object:
        words = [line.split(":") for line in Path(path).read_text().split()]
        loaded = [_Creator(*word) for word in words]
        self.all_creators += loaded
        return loaded

    def deregister_library(self, handle: Any) -> None:
        self.all_creators = [c for c in self.all_creators if c not in handle]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    shared = _Registry()
    module = type("module", (), {"get_plugin_registry": staticmethod(lambda: shared)})
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(ctypes, "CDLL", lambda path: None)
    return TensorRT(flavour="tensorrt", version="0", module=module)


def library(folder: Path, name: str, creators: str) -> Path:
    path = folder / name
    path.write_text(creators)
    return path


def test_the_same_library_is_registered_once(stand_in: TensorRT, tmp_path: Path) -> None:
    ours = "SelectiveScan:1 SparseMoE:1 CausalConvWithState:1 CachedAttention:1 MambaScan:1"
    first = load_plugins(stand_in, library(tmp_path, "a.so", ours))
    assert first == dict.fromkeys(
        ("SelectiveScan", "SparseMoE", "CausalConvWithState", "CachedAttention", "MambaScan"), "1"
    )
    # a copy, as it lies beside engines
    assert load_plugins(stand_in, library(tmp_path, "b.so", ours)) is first
    assert len(stand_in.module.get_plugin_registry().all_creators) == 6


def test_another_library_takes_its_place(stand_in: TensorRT, tmp_path: Path) -> None:
    ours = "SelectiveScan:1 SparseMoE:1 CausalConvWithState:1 CachedAttention:1 MambaScan:1"
    load_plugins(stand_in, library(tmp_path, "a.so", ours))
    load_plugins(stand_in, library(tmp_path, "b.so", f"{ours} More:1"))
    names = [c.name for c in stand_in.module.get_plugin_registry().all_creators]
    assert sorted(names) == sorted({*names}), "the one before is gone"
    assert "More" in names


@pytest.mark.parametrize(
    ("creators", "message"),
    [
        ("SelectiveScan:1 SparseMoE:1", "CausalConvWithState must be of version 1, got none"),
        (
            "SelectiveScan:2 SparseMoE:1 CausalConvWithState:1 CachedAttention:1 MambaScan:1",
            "SelectiveScan must be of version 1, got 2",
        ),
        (
            "SelectiveScan:1:mine SparseMoE:1 CausalConvWithState:1 CachedAttention:1 MambaScan:1",
            "SelectiveScan must be of version 1, got none",
        ),
    ],
    ids=["too few", "another version", "in a namespace"],
)
def test_a_library_of_another_version_is_refused(
    creators: str, message: str, stand_in: TensorRT, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load_plugins(stand_in, library(tmp_path, "a.so", creators))
    assert len(stand_in.module.get_plugin_registry().all_creators) == 1, "nothing stays behind"


_PARSE = """
import sys
from pathlib import Path

from onnx import TensorProto, helper

def refuse(self, *_):
    raise PermissionError(13, "read-only")

link = Path.symlink_to
Path.symlink_to = lambda self, *a: (refuse if "installed" in str(self) else link)(self, *a)
if sys.argv[2] == "ours":
    from longllava_trt.plugins_trt.registry import import_tensorrt
    trt = import_tensorrt("tensorrt-rtx").module
else:
    import tensorrt_rtx as trt
log = trt.Logger(trt.Logger.INTERNAL_ERROR)
trt.get_plugin_registry().load_library(sys.argv[1])
shapes = {"x": [1, 16, 8], "w": [16, 1, 4], "b": [16], "s": [1, 16, 3]}
inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, d) for n, d in shapes.items()]
outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, None) for n in ("y", "t")]
node = helper.make_node("CausalConvWithState", list(shapes), ["y", "t"], activation="silu")
graph = helper.make_graph([node], "g", inputs, outputs)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 27)])
builder = trt.Builder(log)
network = builder.create_network(0)
parser = trt.OnnxParser(network, log)
parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
assert parser.parse(model.SerializeToString())
print("parsed")
"""


@pytest.mark.trt
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_libs") is None,
    reason="parsing plugin nodes is unproven: install longllava-trt[trt-rtx]",
)
@pytest.mark.parametrize(("importer", "parses"), [("ours", True), ("plain", False)])
def test_plugin_nodes_parse_where_nothing_may_be_written(
    importer: str, parses: bool, tmp_path: Path
) -> None:
    """Without the library's second name, TensorRT-RTX ends the process at the first plugin node."""
    from longllava_trt.plugins_trt.library.build import build_library

    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None
    assert spec.origin is not None
    installed = tmp_path / "installed" / "tensorrt_rtx_libs"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text(Path(spec.origin).read_text())
    for file in Path(spec.origin).parent.glob("*.so.*"):
        (installed / file.name).symlink_to(file)
    plugins = build_library(archs=[80], dtypes=["bf16"], weight_formats=["none"]).path
    path = os.pathsep.join([str(installed.parent), str(Path(__file__).parents[2])])
    ended = subprocess.run(
        [sys.executable, "-c", _PARSE, plugins, importer],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode == 0) == parses, ended.stderr
    assert ("parsed" in ended.stdout) == parses


def test_the_gpu_at_hand_is_named_or_absent() -> None:
    found = current_target()
    assert found is None or (found.startswith("sm") and found[2:].isdigit())
