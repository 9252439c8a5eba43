"""1000 images from end to end, at a published size. Weights are random, so only time and memory count.

A bundle with engines runs on them, any other on our own kernels.

All is done by the runtime as a user meets it: files to pixels, vision, projector and decoder, then a question. What
must be compiled for shapes met for the first time is compiled before, by fewer images that make the same shapes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.compare import attempt
from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.dummy_weights import (
    bundles_without_weights,
    draw_weights,
    open_with_dummy_weights,
    used_gib,
)
from benchmarks.gpu.wheels import use_wheels
from longllava_trt.core.engine_record import engine_folders
from longllava_trt.core.manifest import Manifest

if TYPE_CHECKING:
    from longllava_trt.runtime.backends.kernels.backend import KernelsBackend
    from longllava_trt.runtime.backends.trt.backend import TrtBackend
    from longllava_trt.runtime.model import LongLLaVA
    from longllava_trt.runtime.session import Session

__all__ = ["images", "measure_images"]

_COUNTS, _DRY_COUNTS = (10, 100, 1000), (3, 5)
_BATCH = 16
"""Images of a vision batch, and of a chunk: a checkpoint ends it."""
_CHUNK = 4096
_STEPS = 16
_WANTED = "a folder of bundles of full size with --scale"
_QUESTION = "What do these images show?"


def images(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row a bundle and number of images, then one for which nothing overlaps.

    Dry, of a few images and a bundle with weights, in ONNX Runtime.
    """
    bundles = (
        _float32_bundles(context) if context.is_dry else bundles_without_weights(context.scale)
    )
    if not bundles:
        wanted = "a float32 bundle with --bundle" if context.is_dry else _WANTED
        yield {"case": f"not run: name {wanted}"}
        return
    if context.wheels is not None:
        use_wheels(context.wheels)
    from longllava_trt.bench.pictures import DRAWN_FILES, draw_pictures, in_turns
    from longllava_trt.runtime.model import LongLLaVA, RunOptions

    with tempfile.TemporaryDirectory() as scratch:
        pictures = draw_pictures(Path(scratch), DRAWN_FILES)
        for bundle in bundles:
            beside: Callable[[], dict[str, Any]] = dict
            if context.is_dry:
                model = LongLLaVA.from_bundle(bundle, RunOptions(backend="ort", num_threads=1))
            else:
                model, graphs = _open_with_random_weights(bundle)
                beside = partial(_device_figures, graphs)
            counts = _DRY_COUNTS if context.is_dry else _COUNTS
            for count in counts:
                shown = in_turns(pictures, count)
                case = f"{bundle.name}, {count} images"
                yield attempt(case, partial(measure_images, model, shown, beside=beside))
            model.runner.backend.overlap = iter  # type: ignore[assignment,method-assign]
            shown = in_turns(pictures, counts[1])
            case = f"{bundle.name}, {counts[1]} images, vision and decoder in turn"
            yield attempt(case, partial(measure_images, model, shown, beside=beside))
            del model, beside


def _float32_bundles(context: BenchContext) -> list[Path]:
    """Return what ONNX Runtime can run on a CPU."""
    given = [] if context.bundle is None else [context.bundle]
    return [bundle for bundle in given if Manifest.load(bundle).dtype == "float32"]


def _open_with_random_weights(bundle: Path) -> tuple[LongLLaVA, Callable[[], bool | None]]:
    """Return a model, and a function that says whether its decode steps are replayed as graphs."""
    from longllava_trt.models.registry import load_bundle_spec, trained_context
    from longllava_trt.runtime.model import LongLLaVA, RunOptions

    options = RunOptions(chunk_size=_CHUNK, vision_batch=_BATCH)
    manifest = Manifest.load(bundle)
    backend: TrtBackend | KernelsBackend
    if any(engine_folders(bundle)):
        from longllava_trt.runtime.backends.trt.backend import TrtBackend

        backend = TrtBackend(open_with_dummy_weights(bundle))
    else:
        from longllava_trt.runtime.backends.kernels.backend import KernelsBackend

        backend = KernelsBackend(
            bundle,
            manifest,
            max_context=trained_context(load_bundle_spec(bundle)),
            chunk_size=_CHUNK,
            read_weights=draw_weights,
        )
    model = LongLLaVA(bundle, manifest, options, backend=backend)
    return model, lambda: backend.load_decoder().graphs_are_right


def _device_figures(graphs: Callable[[], bool | None]) -> dict[str, Any]:
    return {"memory_gib": used_gib(), "graphs": str(graphs())}


def measure_images(
    model: LongLLaVA, pictures: Sequence[Path], *, beside: Callable[[], dict[str, Any]] = dict
) -> dict[str, Any]:
    """Return what it takes to show some pictures and to answer a question about them.

    Args:
        model: Any bundle, on any backend.
        pictures: Files.
        beside: Returns more figures; called at the end, before any memory is given back.
    """
    from longllava_trt.bench.memory import peak_resident_bytes, reset_peak

    begin = time.perf_counter()
    # the first chunk, one between, and the last have lengths of their own
    _ask(_show(model, pictures[: 2 * _BATCH + len(pictures) % _BATCH])[0])
    warm_up_s = time.perf_counter() - begin
    reset_peak()
    resident = peak_resident_bytes()
    session, row = _show(model, pictures)
    first = _ask(session)
    # again: the first steps after a prompt are captured before they are replayed
    again = _ask(session)
    scores = session.score(_QUESTION, first.token_ids[:1])
    return {
        "ok": bool(np.isfinite(scores).all()) and len(again.token_ids) == _STEPS + 1,
        **row,
        "first_token_s": first.prefill_s,
        "decode_tokens_per_s": again.decode_tokens_per_s,
        "host_growth_mib": (peak_resident_bytes() - resident) / 2**20,
        **beside(),
        "warm_up_s": warm_up_s,
    }


def _show(model: LongLLaVA, pictures: Sequence[Path]) -> tuple[Session, dict[str, Any]]:
    """Return a session with the pictures in it, and what that took."""
    session = model.session(checkpoint_every=_BATCH)
    shown = session.ingest(pictures)
    stages = {name: shown.timings[name] for name in ("vision", "projector", "embed", "prefill")}
    vision_s = stages["vision"] + stages["projector"]
    return session, {
        "images": shown.num_images,
        "positions": shown.num_positions,
        "ingest_s": shown.seconds,
        "ms_per_image": 1e3 * shown.seconds / shown.num_images,
        "decode_image_s": shown.timings["decode_image"],
        **{f"{name}_s": seconds for name, seconds in stages.items()},
        # below 0 where nothing was, and time passed between the stages
        "vision_hidden": (sum(stages.values()) - shown.seconds) / vision_s,
    }


def _ask(session: Session) -> Any:
    """Return an answer of a fixed length, whatever the weights make of it."""
    from longllava_trt.runtime.sampling import SamplingParams

    length = _STEPS + 1
    sampling = SamplingParams(max_new_tokens=length, min_new_tokens=length)
    return session.ask(_QUESTION, sampling=sampling)
