"""Every backend says whether this machine can run it, and why not."""

from __future__ import annotations

import pytest

from longllava_trt.core.errors import MissingDependencyError
from longllava_trt.runtime import usable_backends
from longllava_trt.runtime.backends.trt import cuda
from longllava_trt.runtime.usable_backends import describe_auto, find_backends


def with_machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    target: str | None,
    tensorrt: str | None = None,
    cuda_python: str | None = None,
    kernels: str | None = None,
    interpreted: bool = False,
) -> None:
    """Stand in for a machine: a GPU, and what each part lacks."""

    def fail(lack: str | None) -> None:
        if lack:
            raise MissingDependencyError(lack)

    monkeypatch.setattr(usable_backends, "current_target", lambda: target)
    monkeypatch.setattr(usable_backends, "import_tensorrt", lambda: fail(tensorrt))
    monkeypatch.setattr(cuda, "Cuda", lambda: fail(cuda_python))
    monkeypatch.setattr(usable_backends, "missing", lambda _: kernels)
    monkeypatch.setattr(usable_backends, "is_interpreted", lambda: interpreted)


def test_a_machine_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    with_machine(monkeypatch, target="sm80")
    found = find_backends()
    assert {name: backend.usable for name, backend in found.items()} == {
        "ort": True,
        "trt": True,
        "kernels": True,
    }
    assert found["trt"].detail == "runs engines for sm80"
    auto = describe_auto(found)
    assert auto == "trt where a bundle has engines for this GPU, else kernels, else ort"


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_machine(monkeypatch, target=None, kernels="needs an NVIDIA GPU", interpreted=True)
    found = find_backends()
    assert [name for name, backend in found.items() if backend.usable] == ["ort"]
    assert "needs an NVIDIA GPU and its driver" in found["trt"].detail
    assert describe_auto(found) == "ort: no backend can use an NVIDIA GPU here"


@pytest.mark.parametrize("lack", ["tensorrt", "cuda_python"])
def test_what_engines_lack_is_said(monkeypatch: pytest.MonkeyPatch, lack: str) -> None:
    with_machine(monkeypatch, target="sm80", **{lack: "it is not installed"})  # type: ignore[arg-type]
    found = find_backends()
    assert found["trt"][:1] == (False,)
    assert found["trt"].detail == "it is not installed"
    assert describe_auto(found) == "kernels, else ort"


def test_the_interpreter_is_usable_but_no_choice_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_machine(monkeypatch, target="sm80", tensorrt="none", interpreted=True)
    found = find_backends()
    assert found["kernels"].usable
    assert "under Triton's interpreter" in found["kernels"].detail
    assert describe_auto(found).startswith("ort: ")
