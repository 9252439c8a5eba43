"""All stages of a checkpoint into a bundle, which appears whole or not at all."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from longllava_trt.core.digests import FileHasher
from longllava_trt.core.errors import InputError
from longllava_trt.core.logs import Progress, ProgressEvent
from longllava_trt.core.manifest import (
    MANIFEST_FILE,
    VISION_CONFIG_FOLDER,
    WEIGHTS_FOLDER,
    FileRecord,
    Manifest,
    QuantisationError,
    StageRecord,
    WeightRecord,
    record_files,
)
from longllava_trt.core.publish import atomic_directory
from longllava_trt.core.safetensors_header import TensorSource
from longllava_trt.core.stage_spec import STAGES
from longllava_trt.core.version import __version__
from longllava_trt.core.weight_formats import MoeQuant
from longllava_trt.export.check import check_stage
from longllava_trt.export.memory import check_memory, peak_rss_bytes
from longllava_trt.export.options import ExportOptions
from longllava_trt.export.quantisation.quantise import QuantisedExperts
from longllava_trt.export.resume import Journal, resume_key
from longllava_trt.export.tokenizer import place_tokenizer
from longllava_trt.export.trace import trace_stage
from longllava_trt.export.weights import bind_weights, place_weight_files
from longllava_trt.models.chat_file import ChatFile
from longllava_trt.models.chat_template import TEMPLATE_FILES
from longllava_trt.models.checkpoint import index_checkpoint
from longllava_trt.models.clip import PREPROCESSOR_FILE, clip_config, find_preprocessor
from longllava_trt.models.contracts import stage_specs
from longllava_trt.models.parameters import EMBEDDING, HEAD
from longllava_trt.models.registry import family_of, load_chat, load_family, load_model_spec
from longllava_trt.models.spec import ModelSpec
from longllava_trt.plugins_trt.bodies import function_bodies

__all__ = ["ExportReport", "export_bundle"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """Result of an export."""

    bundle: Path
    dtype: str
    stages: tuple[str, ...]
    new_bytes: int
    """Bytes written; linked weights do not count."""
    linked_bytes: int
    """Bytes of the checkpoint's files that the bundle links to."""
    seconds: float
    peak_rss_bytes: int
    """Largest resident set of this process since its start."""
    moe_quant: MoeQuant = "none"
    quantisation_errors: tuple[QuantisationError, ...] = ()
    quantised_bytes: int = 0
    """Bytes of the checkpoint's experts that this process has quantised, without earlier ones."""
    quantise_seconds: float = 0.0


def export_bundle(
    checkpoint: Path,
    bundle: Path,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    **changes: Any,
) -> ExportReport:
    """Export a checkpoint.

    If a call was killed, the same call continues it: layers of experts that are finished are not
    quantised again.

    Args:
        checkpoint: Folder with config.json, safetensors and tokenizer.json.
        bundle: Folder to make.
        options: Options of the export.
        overwrite: Replace a bundle in the folder.
        progress: Called before and after each stage.
        changes: Fields of `ExportOptions` that differ from ``options``.

    Raises:
        InputError: If an option or the target is not usable.
        ConfigError: If config.json has a value that is not supported.
        CheckpointError: If tensors or files are missing or damaged.
        ExportError: If a stage cannot be traced, fails its checks, or takes more memory than
            allowed.
    """
    begin = time.monotonic()
    options = replace(options or ExportOptions(), **changes)
    tower = options.vision_tower
    config = load_model_spec(checkpoint, vision_tower=tower)
    sources = index_checkpoint(checkpoint, config, vision_tower=tower)
    stages = _stages_of(config, options.stages)
    dtype = options.dtype
    if dtype == "auto":
        head = EMBEDDING if config.decoder.tie_embeddings else HEAD
        dtype = sources[family_of(config).tensor_name(head)].dtype
    specs = stage_specs(config, dtype)
    experts = QuantisedExperts.of(config, options.moe_quant if "decoder" in stages else "none")
    shards = sorted({checkpoint / source.file for source in sources.values()})
    key = resume_key(
        shards,
        config=(checkpoint / "config.json").read_text(encoding="utf-8"),
        tensors=sorted((name, str(s.file), s.offset, s.dtype) for name, s in sources.items()),
        options=[dtype, list(stages), options.weights, options.moe_quant],
        versions=_versions(),
    )
    with (
        atomic_directory(
            bundle, overwrite=overwrite, marker=MANIFEST_FILE, resume_key=key
        ) as staging,
        FileHasher() as hasher,
    ):
        journal = Journal(staging, hasher)
        if "decoder" in stages and options.weights != "copy":
            # it has nearly all weights; most of the hashing is done while the stages are traced
            for file in shards:
                hasher.start(file)
        _copy_side_files(checkpoint, config, staging, vision_tower=tower)
        total = len(stages) + len(experts.layers) + 1
        records: dict[str, WeightRecord] = {}
        for done, name in enumerate(stages):
            _tell(progress, done, total, name)
            records |= _export_stage(config, name, dtype, sources, staging, experts)
            check_memory(options.max_ram_gib, where=name)
        for done, layer in enumerate(experts.layers, start=len(stages)):
            _tell(progress, done, total, f"experts of layer {layer}")
            experts.write(layer, staging, journal=journal, sources=sources, checkpoint=checkpoint)
            check_memory(options.max_ram_gib, where=f"experts of layer {layer}")
        _tell(progress, total - 1, total, "hashing")
        used = [sources[name] for name in records if name in sources]
        copied = place_weight_files(checkpoint, used, staging, mode=options.weights)
        files = record_files(staging, hasher)
        Manifest(
            dtype=dtype,
            stages={n: StageRecord(file=_graph_file(n), spec=specs[n]) for n in stages},
            weights=records,
            files=files,
            produced_by=_versions(),
            moe_quant=experts.quant,
            quantisation_errors=tuple(experts.errors),
        ).save(staging)
        check_memory(options.max_ram_gib, where="hashing")
        _tell(progress, total, total, f"{len(files)} files")
        own = (staging / MANIFEST_FILE).stat().st_size + sum(
            record.nbytes
            for name, record in files.items()
            if not name.startswith(f"{WEIGHTS_FOLDER}/")
        )
    derived = sum(files[file].nbytes for file in experts.files)
    return ExportReport(
        bundle=bundle,
        dtype=dtype,
        stages=tuple(stages),
        new_bytes=own + copied + derived,
        linked_bytes=_weight_bytes(files) - copied - derived,
        seconds=time.monotonic() - begin,
        peak_rss_bytes=peak_rss_bytes(),
        moe_quant=experts.quant,
        quantisation_errors=tuple(experts.errors),
        quantised_bytes=experts.bytes_read,
        quantise_seconds=experts.seconds,
    )


def _stages_of(config: ModelSpec, stages: Sequence[str]) -> Sequence[str]:
    """Return the stages to export: a text model has fewer."""
    if set(stages) == set(STAGES):
        return [name for name in stages if name in config.stages]
    lacking = [name for name in stages if name not in config.stages]
    if lacking:
        raise InputError(
            f"export: stages of this model are {', '.join(config.stages)}, got {', '.join(lacking)}"
        )
    return stages


def _export_stage(
    config: ModelSpec,
    name: str,
    dtype: str,
    sources: dict[str, TensorSource],
    staging: Path,
    experts: QuantisedExperts,
) -> dict[str, WeightRecord]:
    """Trace, bind, check and write one stage; return its weight map."""
    spec = stage_specs(config, dtype)[name]
    model = trace_stage(config, spec, dtype=dtype, moe_quant=experts.quant)
    records = bind_weights(
        model, sources, derived=experts.records, keep_inputs=len(spec.inputs), dtype=dtype
    )
    proto = _with_bodies(ir.to_proto(model), experts.weight_format)
    check_stage(proto, spec)
    (staging / _graph_file(name)).write_bytes(proto.SerializeToString(deterministic=True))
    logger.info("export %s: %d nodes, %d weights", name, len(proto.graph.node), len(records))
    return records


def _with_bodies(model: onnx.ModelProto, weight_format: str) -> onnx.ModelProto:
    """Give every custom node its function body, so that any ONNX runtime can run the file."""
    used = {(node.domain, node.op_type) for node in model.graph.node}
    model.functions.extend(f for f in function_bodies(weight_format) if (f.domain, f.name) in used)
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.producer_name, model.producer_version = "longllava-trt", __version__
    return model


def _copy_side_files(
    checkpoint: Path, config: ModelSpec, staging: Path, *, vision_tower: Path | None
) -> None:
    """Copy tokenizer and configs; fill in the two that a published checkpoint may lack."""
    _place_chat(checkpoint, staging)
    eos = config.eos_token_ids
    defaults: dict[str, dict[str, Any]] = {
        "generation_config.json": {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": eos[0] if len(eos) == 1 else list(eos),
            "pad_token_id": config.pad_token_id,
        },
    }
    if config.vision is not None:
        defaults[PREPROCESSOR_FILE] = find_preprocessor(
            checkpoint,
            config.vision,
            tower=config.tower or "",
            override=vision_tower,
        )
    for name in ("config.json", "tokenizer_config.json", *defaults):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, staging / name)
        elif name in defaults:
            (staging / name).write_text(json.dumps(defaults[name], indent=2) + "\n")
    # no tensor's shape shows the number of heads; the graphs do not need it, the kernels backend
    # does
    if config.vision is not None:
        tower = staging / VISION_CONFIG_FOLDER / "config.json"
        tower.parent.mkdir(exist_ok=True)
        tower.write_text(json.dumps(clip_config(config.vision), indent=2) + "\n")


def _place_chat(checkpoint: Path, staging: Path) -> None:
    """Write the tokenizer, and what is chosen once for all prompts."""
    chat = load_chat(checkpoint)
    placed = place_tokenizer(checkpoint, staging, prefers_model=chat.reads_sentencepiece)
    if load_family(checkpoint).read_chat is None:
        return
    ChatFile(prompt_format=chat.name, piece_prefix=placed.piece_prefix).write(staging)
    for name in TEMPLATE_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, staging / name)


def _graph_file(stage: str) -> str:
    return f"{stage}.onnx"


def _weight_bytes(files: dict[str, FileRecord]) -> int:
    return sum(r.nbytes for name, r in files.items() if name.endswith(".safetensors"))


def _versions() -> dict[str, str]:
    packages = ("torch", "onnx", "onnx-ir", "onnxscript")
    return {"longllava-trt": __version__} | {name: version(name) for name in packages}


def _tell(progress: Progress | None, done: int, total: int, note: str) -> None:
    if progress is not None:
        progress(ProgressEvent("export", done, total, "steps", note))
