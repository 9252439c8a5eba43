"""mamba-ssm's scan in the place of ours: its own plain version is an oracle where it is installed, a stand-in serves elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from longllava_trt.core.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    import torch

    from tests.runtime.backends.kernels.conftest import Small

INTERFACE = "mamba_ssm.ops.selective_scan_interface"
LIMIT = 1e-5


def like_mamba_ssm(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """Compute what mamba-ssm documents, position by position: [batch, d_inner, seq_len], state from zero."""
    import torch
    from torch.nn.functional import silu, softplus

    assert delta_softplus
    assert return_last_state
    assert D is not None
    assert z is not None
    assert delta_bias is not None
    # its CUDA code refuses anything else
    assert {str(t.dtype) for t in (A, D, delta_bias)} == {"torch.float32"}
    assert {t.dtype for t in (u, delta, B, C, z)} == {u.dtype}
    dt = softplus(delta.float() + delta_bias[:, None])
    state, rows = A.new_zeros((*u.shape[:2], A.shape[1])), []
    for t in range(u.shape[2]):
        step = dt[:, :, t, None]
        inputs = step * u[:, :, t, None].float() * B[:, None, :, t].float()
        state = (step * A).exp() * state + inputs
        rows.append((state * C[:, None, :, t].float()).sum(-1))
    y = torch.stack(rows, dim=2) + u.float() * D[:, None]
    return (y * silu(z.float())).to(u.dtype), state


@pytest.fixture(params=["stand-in", "selective_scan_ref"])
def mamba_ssm(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """mamba-ssm's function, from the package or made up."""
    if request.param == "stand-in":
        return like_mamba_ssm
    # the compiled modules are not needed for the plain version, but imported beside it
    for name in ("selective_scan_cuda", "causal_conv1d_cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    why = "mamba-ssm is not installed: that its own plain version agrees stays unproven here"
    interface = pytest.importorskip(INTERFACE, reason=why, exc_type=ImportError)
    function: Callable[..., Any] = interface.selective_scan_ref
    return function


def scan_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    """Draw the operator's inputs, the state of zeros last."""
    import torch

    batch, seq_len, d_inner, d_state = 2, 37, 24, 16
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "u": (batch, seq_len, d_inner),
        "dt": (batch, seq_len, d_inner),
        "A_log": (d_inner, d_state),
        "B": (batch, seq_len, d_state),
        "C": (batch, seq_len, d_state),
        "D": (d_inner,),
        "z": (batch, seq_len, d_inner),
        "dt_bias": (d_inner,),
    }
    drawn = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes.values()]
    return [*drawn, torch.zeros(batch, d_inner, d_state)]


@pytest.mark.parametrize(("dtype", "limit"), [("float32", LIMIT), ("bfloat16", 1e-2)])
def test_it_gives_what_ours_gives(mamba_ssm: Callable[..., Any], dtype: str, limit: float) -> None:
    import torch

    from longllava_trt.plugins_trt.kernels.naive import naive_selective_scan
    from longllava_trt.runtime.backends.kernels.mamba_scan import mamba_scan

    inputs = scan_inputs(getattr(torch, dtype))
    want_y, want_state = naive_selective_scan(*inputs)
    written = torch.full_like(inputs[-1], torch.nan)
    y, state = mamba_scan(mamba_ssm, *inputs, state_out=written)
    assert state is written
    assert (y.dtype, y.shape, y.is_contiguous()) == (want_y.dtype, want_y.shape, True)
    assert float((y - want_y).abs().max() / want_y.abs().max()) <= limit
    assert float((state - want_state).abs().max() / want_state.abs().max()) <= LIMIT


@pytest.mark.usefixtures("plain_versions")
@pytest.mark.parametrize(
    ("sizes", "num_calls"),
    [([17], 2), ([14, 3], 2), ([2, 1, 14], 2), ([1, 16], 0), ([1] * 17, 0)],
    ids=str,
)
def test_it_reads_the_first_chunk_and_nothing_else(
    make_small: Callable[..., Small],
    mamba_ssm: Callable[..., Any],
    sizes: list[int],
    num_calls: int,
) -> None:
    from longllava_trt.runtime.backends.kernels.decoder import KernelsDecoder
    from longllava_trt.runtime.backends.kernels.mamba_scan import mamba_scan

    small, calls = make_small(), []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args[0].shape)
        return mamba_ssm(*args, **options)

    model = small.decoder.model
    decoder = KernelsDecoder(
        model, small.spec, small.decoder.stream, first_scan=partial(mamba_scan, counted)
    )
    embeds = small.embeds(1, 17)
    state = decoder.new_state(capacity=17)
    start = state.snapshot()
    for _ in range(2):
        # the second time after a rewind, which leaves the first one's states in the other half
        state.restore(start)
        calls.clear()
        pieces = np.split(embeds, np.cumsum(sizes)[:-1], axis=1)
        found = np.stack([decoder.step(piece, state) for piece in pieces])
        want = small.want(embeds)[np.cumsum(sizes) - 1]
        assert np.abs(found - want).max() <= LIMIT * np.abs(want).max()
        assert len(calls) == num_calls, "of two Mamba layers"


@pytest.mark.usefixtures("plain_versions")
def test_a_neighbour_that_goes_on_keeps_its_state(make_small: Callable[..., Small]) -> None:
    from longllava_trt.runtime.backends.kernels.decoder import KernelsDecoder
    from longllava_trt.runtime.backends.kernels.mamba_scan import mamba_scan

    small = make_small()
    decoder = KernelsDecoder(
        small.decoder.model,
        small.spec,
        small.decoder.stream,
        first_scan=partial(mamba_scan, like_mamba_ssm),
    )
    first, second = decoder.new_states(2, capacity=16)
    prompts = [small.embeds(1, 9, seed=seed) for seed in (1, 2)]
    decoder.step(prompts[0][:, :5], first)
    for prompt, state, begin in ((prompts[1], second, 0), (prompts[0], first, 5)):
        found = decoder.step(prompt[:, begin:], state)
        want = small.want(prompt)[-1]
        assert np.abs(found - want).max() <= LIMIT * np.abs(want).max()


def load_on(device: str) -> Any:
    import torch

    from longllava_trt.runtime.backends.kernels.mamba_scan import load_mamba_scan

    return load_mamba_scan(torch.device(device))


def test_an_absent_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'longllava-trt\[mamba\]'"):
        load_on("cuda")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package of that name, with nothing in it."""
    import importlib.machinery

    interface = ModuleType(INTERFACE)
    for name in ("mamba_ssm", "mamba_ssm.ops", INTERFACE):
        module = interface if name == INTERFACE else ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    return interface


def test_the_packages_own_function_is_taken(installed: ModuleType) -> None:
    import torch

    installed.__dict__["selective_scan_fn"] = like_mamba_ssm
    inputs = scan_inputs(torch.float32)
    y, _ = load_on("cuda")(*inputs, state_out=torch.empty_like(inputs[-1]))
    assert y.shape == inputs[0].shape


def test_a_package_that_does_not_load_is_named(
    installed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as Python does where a compiled part cannot be linked
    monkeypatch.setitem(sys.modules, INTERFACE, None)
    with pytest.raises(MissingDependencyError, match=r"installed but cannot be loaded .*reinstall"):
        load_on("cuda")


def test_it_is_refused_off_a_gpu(installed: ModuleType) -> None:
    with pytest.raises(InputError, match=r"NVIDIA GPU only, got cpu .*use --scan ours"):
        load_on("cpu")
