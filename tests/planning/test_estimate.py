"""Whether things fit, and what is named when they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from longllava_trt.core.engine_record import EngineRecord, PluginRecord
from longllava_trt.core.errors import InputError
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.planning import GPUS, EngineMemory, PlanRequest, find_gpu, make_plan

A100 = GPUS["a100-80gb"]


def test_9b_fits_an_a100_with_as_many_images_as_its_context_holds() -> None:
    plan = make_plan(PRESETS["9b"], A100)

    assert plan.fits
    assert plan.suggestion is None
    # 176,000 positions less 64 of text, 150 an image; the paper says 1173 for 175,950
    assert plan.max_images == 1172
    assert plan.kv_bytes_per_image == 150 * 16 * 1024


def test_53b_in_bfloat16_is_refused_and_int8_experts_are_named() -> None:
    plan = make_plan(PRESETS["53b"], A100)

    assert not plan.fits
    assert "103.8 GB of weights" in plan.problems[0]
    assert plan.suggestion == "--moe-quant w8a16: 58.7 GB of weights, 1000 images fit"


def test_suggestions_fit_when_they_are_followed() -> None:
    request = PlanRequest(images=1000, moe_quant="w4a16")
    gpu = find_gpu("40GiB+312TFLOPs+1555GB/s")

    assert make_plan(PRESETS["53b"], gpu, request).fits
    small = replace(gpu, memory_bytes=41 * 10**9)
    plan = make_plan(PRESETS["53b"], small, request)
    assert not plan.fits
    assert plan.suggestion is not None
    fewer = int(plan.suggestion.split("--images ")[1].split(":")[0])
    assert make_plan(PRESETS["53b"], small, replace(request, images=fewer)).fits
    assert not make_plan(PRESETS["53b"], small, replace(request, images=fewer + 1)).fits


def test_nothing_is_suggested_where_the_weights_alone_do_not_fit() -> None:
    plan = make_plan(PRESETS["53b"], GPUS["rtx-4090"])

    assert not plan.fits
    assert plan.suggestion is None


def test_prompts_beyond_the_trained_context_are_refused_whatever_the_card_holds() -> None:
    plan = make_plan(PRESETS["9b"], GPUS["h200"], PlanRequest(images=1200))

    assert plan.problems == ("1200 images are 180064 positions, the context is 176000",)
    assert plan.suggestion == "--images 1172: 19.2 GB of weights"


def test_memory_grows_with_images_by_keys_and_values_alone() -> None:
    few, many = (
        make_plan(PRESETS["9b"], A100, PlanRequest(images=images)) for images in (10, 1000)
    )

    assert many.device.total - few.device.total == 990 * few.kv_bytes_per_image
    assert many.host_bytes == few.host_bytes


@pytest.mark.parametrize(
    "text", ["a100", "", "80GiB", "1.2.3GiB+1TFLOPs+1GB/s", "0GiB+1TFLOPs+1GB/s"]
)
def test_unknown_gpus_are_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(InputError, match="a100-40gb, a100-80gb"):
        find_gpu(text)


def test_free_form_gpus_are_read() -> None:
    gpu = find_gpu("48 GiB + 150 TFLOPs + 864 GB/s")

    assert (gpu.memory_bytes, gpu.flops, gpu.bandwidth) == (48 * 2**30, 150e12, 864e9)


def test_requests_without_sense_are_refused() -> None:
    with pytest.raises(InputError, match="text_tokens must be at least 1, got 0"):
        PlanRequest(text_tokens=0)
    with pytest.raises(InputError, match="images must be at least 0, got -1"):
        PlanRequest(images=-1)


def test_engines_that_are_there_say_what_they_work_in() -> None:
    engines = EngineMemory(scratch=3 * 10**9, capacity=40_000)
    estimated = make_plan(PRESETS["9b"], A100, PlanRequest(images=100))
    plan = make_plan(PRESETS["9b"], A100, PlanRequest(images=100, engines=engines))

    assert plan.fits
    assert plan.device.activations == 3 * 10**9
    assert plan.device.kv_cache == 40_000 * 16 * 1024, "taken whether used or not"
    assert plan.decode_tokens_per_s == estimated.decode_tokens_per_s
    assert plan.max_images == (40_000 - 64) // 150
    beyond = make_plan(PRESETS["9b"], A100, PlanRequest(images=300, engines=engines))
    assert beyond.problems == ("300 images are 45064 positions, the engines have room for 40000",)


def test_engines_whose_cache_does_not_fit_show_no_image() -> None:
    engines = EngineMemory(scratch=3 * 10**9, capacity=10**7)
    plan = make_plan(PRESETS["9b"], A100, PlanRequest(images=1, engines=engines))

    assert not plan.fits
    assert plan.max_images < 1


def test_engines_that_do_not_say_what_they_work_in_are_refused() -> None:
    plugins = PluginRecord(file="lib.so", nbytes=1, sha256="", versions={})
    record = EngineRecord(
        target="sm80",
        flavour="tensorrt",
        tensorrt_version="11.4",
        dtype="bfloat16",
        plugins=plugins,
        stages={},
        options={},
    )
    with pytest.raises(InputError, match=r"plan: engines must have a decoder, .* build them again"):
        EngineMemory.of(record)
