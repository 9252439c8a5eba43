"""An error says what a machine lacks before anything is loaded, and what to do about it."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from longllava_trt.core.errors import InputError, MissingDependencyError
from longllava_trt.runtime.backends.kernels import requirements
from longllava_trt.runtime.backends.kernels.requirements import (
    MemoryNeed,
    check_machine,
    check_memory,
    missing,
)

GIB = 2**30


def with_versions(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(package: str) -> str:
        if package not in versions:
            raise PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(requirements, "version", version)


@pytest.mark.parametrize(
    ("versions", "lack"),
    [
        ({}, "torch 2.11 or later, got none"),
        ({"torch": "2.9.1+cu130"}, "torch 2.11 or later, got 2.9"),
        ({"torch": "2.11.0"}, "triton 3.6 or later, got none"),
        ({"torch": "2.11.0", "triton": "3.5.1"}, "triton 3.6 or later, got 3.5"),
    ],
)
def test_packages_are_asked_for_first(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], lack: str
) -> None:
    with_versions(monkeypatch, **versions)
    with pytest.raises(MissingDependencyError, match=lack) as raised:
        check_machine("float32")
    assert "pip install 'longllava-trt[kernels]'" in str(raised.value)


def test_versions_that_do_are_enough_for_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with_versions(monkeypatch, torch="2.11.0+cu130", triton="3.6.0")
    assert missing("bfloat16") is None
    with_versions(monkeypatch, torch="3.0", triton="10.0")
    assert missing() is None


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU that is as one likes it."""
    import torch

    card = SimpleNamespace(there=True, capability=(9, 0))
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card.there)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA T4")
    with_versions(monkeypatch, torch="2.11.0", triton="3.6.0")
    return card


def test_a_gpu_is_needed_unless_kernels_are_interpreted(card: SimpleNamespace) -> None:
    assert missing("bfloat16") is None
    card.there = False
    message = missing()
    assert message is not None
    assert "needs an NVIDIA GPU" in message
    assert "--backend ort, or set TRITON_INTERPRET=1" in message


def test_a_torch_that_does_not_load_is_said(
    card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as Python does where a library of CUDA's is gone
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="torch, which is installed but cannot be"):
        check_machine("float32")


def test_bfloat16_needs_a_card_that_has_it(card: SimpleNamespace) -> None:
    card.capability = (7, 5)
    message = missing("bfloat16")
    assert message is not None
    assert "got NVIDIA T4 with 7.5; export the bundle with --dtype float16" in message
    assert missing("float16") is None


def need(**changes: int) -> MemoryNeed:
    return MemoryNeed(
        weights=18 * GIB,
        caches=4 * GIB,
        work=1 * GIB,
        max_context=176_000,
        is_quantised=bool(changes.get("is_quantised", 0)),
    )


def test_what_fits_is_not_refused() -> None:
    check_memory(need(), free=23 * GIB)


def test_a_shorter_context_is_named_where_it_would_fit() -> None:
    with pytest.raises(InputError) as raised:
        check_memory(need(), free=20 * GIB)
    message = str(raised.value)
    assert (
        "need 23.0 GiB on the GPU (weights 18.0, caches of 176000 positions 4.0, work 1.0)"
        in message
    )
    assert (
        "got 20.0 free; pass --max-context 44000, or export the bundle with --moe-quant" in message
    )


def test_no_context_helps_where_weights_alone_do_not_fit() -> None:
    with pytest.raises(InputError) as raised:
        check_memory(need(is_quantised=1), free=16 * GIB)
    assert "--max-context" not in str(raised.value)
    assert "--moe-quant" not in str(raised.value)
    assert "use a larger GPU" in str(raised.value)
