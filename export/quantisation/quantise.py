"""Quantised experts of an export: their layers, their files, and the result of each.

expert_files.py       the layout of a layer's file, from shapes alone
expert_writer.py      writes a file
quantised_graph.py    lets a traced decoder read them
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from longllava_trt.core.manifest import QuantisationError, WeightRecord
from longllava_trt.core.safetensors_header import TensorSource
from longllava_trt.core.weight_formats import WEIGHT_FORMATS, MoeQuant
from longllava_trt.export.quantisation.expert_files import (
    check_format,
    expert_file,
    expert_records,
)
from longllava_trt.export.quantisation.expert_writer import quantise_layer
from longllava_trt.export.resume import Journal
from longllava_trt.models.spec import ModelSpec

__all__ = ["QuantisedExperts"]

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class QuantisedExperts:
    """The quantised layers of one export; none if it quantises nothing."""

    config: ModelSpec
    quant: MoeQuant
    layers: tuple[int, ...]
    records: Mapping[str, WeightRecord]
    """Weight map of all of them."""
    errors: list[QuantisationError] = field(default_factory=list)
    """Errors of the layers that are written."""
    bytes_read: int = 0
    seconds: float = 0.0
    """Seconds that it took, without layers that had been finished before."""

    @classmethod
    def of(cls, config: ModelSpec, quant: MoeQuant) -> QuantisedExperts:
        """Plan the files.

        Raises:
            InputError: If the model's experts cannot be stored in that format.
        """
        if quant == "none":
            return cls(config=config, quant=quant, layers=(), records={})
        check_format(config, quant)
        layers = tuple(config.decoder.moe_layers)
        records: dict[str, WeightRecord] = {}
        for layer in layers:
            records |= expert_records(config, layer, quant)
        return cls(config=config, quant=quant, layers=layers, records=records)

    @property
    def weight_format(self) -> str:
        """The operator's name of the format."""
        return WEIGHT_FORMATS[self.quant].codec

    @property
    def files(self) -> list[str]:
        """Paths in the bundle."""
        return [expert_file(layer) for layer in self.layers]

    def write(
        self,
        layer: int,
        staging: Path,
        *,
        journal: Journal,
        sources: Mapping[str, TensorSource],
        checkpoint: Path,
    ) -> None:
        """Write the file of one layer, unless it is finished.

        Raises:
            CheckpointError: If a weight is NaN or infinite.
        """
        file = expert_file(layer)
        finished = journal.recall(file)
        if finished is not None:
            self.errors += [QuantisationError(**error) for error in finished]
            return
        begin = time.monotonic()
        made = quantise_layer(
            staging / file,
            layer,
            config=self.config,
            sources=sources,
            checkpoint=checkpoint,
            quant=self.quant,
        )
        journal.finish(file, sha256=made.sha256, remembered=[asdict(e) for e in made.errors])
        seconds = time.monotonic() - begin
        self.errors += made.errors
        self.bytes_read += made.bytes_read
        self.seconds += seconds
        logger.info(
            "experts of layer %d: %.1f s, %.2f GB/s",
            layer,
            seconds,
            made.bytes_read / seconds / 1e9,
        )
