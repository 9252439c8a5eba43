"""Profiles allow what the limits say, for one sequence and for several."""

from __future__ import annotations

from pathlib import Path

from longllava_trt.core.manifest import Manifest
from longllava_trt.export.engine.profiles import EngineLimits, engine_spec, stage_profiles


def test_one_sequence_is_a_batch_of_one(tiny_bundle: Path) -> None:
    limits = EngineLimits(max_context=48, chunk=16)
    spec = engine_spec(Manifest.load(tiny_bundle).stage("decoder").spec, limits)
    profiles = stage_profiles(spec, limits)
    assert {name: list(ranges) for name, ranges in profiles.items()} == {
        "chunk": ["inputs_embeds"],
        "decode": ["inputs_embeds"],
    }
    step = profiles["decode"]["inputs_embeds"]
    assert (step.min, step.opt, step.max) == ((1, 1, 64), (1, 1, 64), (1, 2, 64))


def test_several_sequences_take_a_step_of_one_token(tiny_bundle: Path) -> None:
    limits = EngineLimits(max_context=48, chunk=16, sequences=4)
    manifest = Manifest.load(tiny_bundle)
    spec = engine_spec(manifest.stage("decoder").spec, limits)
    profiles = stage_profiles(spec, limits)
    chunk, step = profiles["chunk"], profiles["decode"]
    assert list(chunk) == list(step) == [tensor.name for tensor in spec.inputs]
    embeds = step["inputs_embeds"]
    assert (embeds.min, embeds.opt, embeds.max) == ((1, 1, 64), (1, 1, 64), (4, 1, 64))
    assert (step["past_len"].min, step["past_len"].max) == ((1,), (4,))
    assert step["past_key_values.4.key"].max == (4, 2, 48, 16)
    assert {ranges.max[0] for ranges in chunk.values()} == {1}
    assert chunk["inputs_embeds"].max == (1, 16, 64)
    embed = engine_spec(manifest.stage("embed").spec, limits)
    assert embed.inputs[0].shape == (1, "seq_len"), "the decoder alone"
