"""A family that is registered in one call goes the whole way: weights, export, ONNX Runtime, parity."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from longllava_trt.core.errors import ConfigError, InputError
from longllava_trt.core.manifest import Manifest
from longllava_trt.export.bundle import export_bundle
from longllava_trt.inspection import inspect_bundle, inspect_checkpoint
from longllava_trt.models.chat_file import ChatFile
from longllava_trt.models.registry import load_model_spec, register_family, unregister_family
from longllava_trt.planning import find_gpu, make_plan
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.validation import validate
from tests.models.toy_family.family import FAMILY


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of the family, and its bundle beside it, while the family is known."""
    register_family(FAMILY)
    folder = tmp_path_factory.mktemp("toy")
    write_checkpoint(folder / "checkpoint", preset="toy")
    (folder / "checkpoint" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    export_bundle(folder / "checkpoint", folder / "bundle")
    yield folder
    unregister_family(FAMILY.model_type)


def test_it_is_read_back(toy: Path) -> None:
    spec = load_model_spec(toy / "checkpoint")
    assert spec == FAMILY.presets["toy"]
    assert spec.num_image_tokens == 9
    assert spec.decoder.layer_kinds == ("attention",)


def test_its_bundle_has_its_own_names_and_no_state_of_mamba(toy: Path) -> None:
    manifest = Manifest.load(toy / "bundle")
    assert all(name.startswith("toy:") for name in manifest.weights)
    state = [t.name for t in manifest.stage("decoder").spec.inputs[2:]]
    assert state == ["past_key_values.0.key", "past_key_values.0.value"]
    assert manifest.stage("projector").spec.outputs[0].shape == ("num_images", 9, 64)


def test_it_passes_validation_at_every_depth(toy: Path) -> None:
    report = validate(toy / "bundle", toy / "checkpoint", max_new_tokens=6)
    assert [row.line() for row in report.failures] == []
    levels = {row.name.partition(".")[0] for row in report.rows if row.status == "passed"}
    assert levels == {"op", "layer", "stage", "generation"}


def test_it_answers(toy: Path) -> None:
    answer = LongLLaVA.from_bundle(toy / "bundle").generate("What is it?", max_new_tokens=4)
    assert len(answer.token_ids) == 4


def test_its_bundle_keeps_its_prompts(toy: Path) -> None:
    bundle = toy / "bundle"
    assert ChatFile.read(bundle) == ChatFile(prompt_format="toy")
    template = toy / "checkpoint" / "chat_template.jinja"
    assert (bundle / template.name).read_bytes() == template.read_bytes()
    for name, text in ((None, "USER: a\nASSISTANT: "), ("loud", "USER: a!\nASSISTANT: ")):
        model = LongLLaVA.from_bundle(bundle, RunOptions(prompt_format=name))
        assert model.session().written_prompt("a").text == text
    with pytest.raises(InputError, match=r"must be one of toy, loud, got 'silent'"):
        LongLLaVA.from_bundle(bundle, RunOptions(prompt_format="silent"))


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"run: prompt_format must be a name, got 1"):
        RunOptions(prompt_format=1)  # type: ignore[arg-type]


def test_it_is_inspected_and_planned(toy: Path) -> None:
    counted = inspect_checkpoint(toy / "checkpoint").parameters
    found = inspect_bundle(toy / "bundle")
    assert found.layer_pattern == "A"
    assert (found.parameters.decoder, found.parameters.projector) == (
        counted.decoder,
        counted.projector,
    )
    plan = make_plan(load_model_spec(toy / "checkpoint"), find_gpu("a100-80gb"))
    assert plan.tokens == 9 * 1000 + plan.request.text_tokens


def test_without_registration_it_is_not_known(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "toys"}')
    with pytest.raises(ConfigError, match=r"'toys' is not known; supported: .*Toy \('toy'\)"):
        load_model_spec(tmp_path)
    with pytest.raises(ConfigError, match="must be new"):
        register_family(FAMILY)
