"""A bundle is compared with its own checkpoint only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longllava_trt.core.errors import InputError
from longllava_trt.export.bundle import export_bundle
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from longllava_trt.validation import validate
from longllava_trt.validation.parity_case import ParityCase
from tests.export.stored_traces import stored_traces
from tests.validation.conftest import Made

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.parametrize("made", ["tiny"], indirect=True)


def edit_json(path: Path, **changes: object) -> None:
    # a new file: the old one may be linked from elsewhere
    text = json.dumps(json.loads(path.read_text()) | changes)
    path.unlink()
    path.write_text(text)


def test_a_copied_checkpoint_is_the_same(made: Made, tmp_path: Path) -> None:
    copy = shutil.copytree(made[1], tmp_path / "copy")
    assert ParityCase.open(made[0], copy).bundle == made[0]


@pytest.mark.parametrize(
    ("preset", "seed", "reason"),
    [
        ("tiny", 1, "the bytes of model-0000"),
        ("tiny-dense", 0, "'num_experts' of config.json is 1"),
    ],
    ids=["other-seed", "other-model"],
)
def test_another_checkpoint_is_refused(
    made: Made, tmp_path: Path, preset: str, seed: int, reason: str
) -> None:
    other = tmp_path / "other"
    write_checkpoint(other, preset=preset, seed=seed)
    with pytest.raises(InputError, match=reason):
        validate(made[0], other)


def test_a_field_that_no_shape_shows_is_compared(made: Made, tmp_path: Path) -> None:
    other = shutil.copytree(made[1], tmp_path / "other")
    edit_json(other / "config.json", rms_norm_eps=1e-5)
    with pytest.raises(InputError, match=r"'rms_norm_eps' of config.json is 1e-05"):
        validate(made[0], other)


def test_other_shards_are_refused(made: Made, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_checkpoint(other, preset="tiny", shard_bytes=2**20)
    with pytest.raises(InputError, match="is stored at another place"):
        validate(made[0], other)


def test_half_precision_is_refused(made: Made, tmp_path: Path) -> None:
    bundle = shutil.copytree(made[0], tmp_path / "bundle")
    edit_json(bundle / "manifest.json", dtype="bfloat16")
    with pytest.raises(InputError, match=r"must be float32 .* got bfloat16"):
        validate(bundle, made[1])


def test_without_torch_the_extra_is_named(made: Made) -> None:
    program = (
        "import sys; from pathlib import Path; sys.modules['torch'] = None\n"
        "from longllava_trt.core.errors import MissingDependencyError\n"
        "from longllava_trt.validation import validate\n"
        "try: validate(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except MissingDependencyError as err: print(err)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, made)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'torch', which is not installed; install longllava-trt[export]" in result.stdout


def test_a_bundle_with_another_vision_tower_is_validated_with_it(
    made: Made, tmp_path: Path, traces: Path
) -> None:
    _, checkpoint = made
    donor = tmp_path / "donor"
    write_checkpoint(donor, preset="tiny", seed=5)
    tower = tmp_path / "clip"
    tower.mkdir()
    shutil.copy(donor / "vision_tower/config.json", tower)
    for file in donor.glob("model*"):
        shutil.copy(file, tower)
    bundle = tmp_path / "bundle"
    with stored_traces(traces):
        export_bundle(checkpoint, bundle, vision_tower=tower)
    report = validate(bundle, checkpoint, levels=["stage"], kernels=["fast"], vision_tower=tower)
    assert report.passed, report.failures
    with pytest.raises(InputError, match="was not exported from"):
        validate(bundle, checkpoint, levels=["stage"])
