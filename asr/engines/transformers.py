"""transformers' own Trainer: CPU, CUDA, and HPUs through accelerate. Needs no optimum-habana, whose last release pins 4.55."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from asr.engines import Engine

if TYPE_CHECKING:
    from asr.topology import Topology

log = logging.getLogger(__name__)


class TransformersEngine(Engine):
    """Trainer of whichever transformers is installed, 4.55 or newer."""

    LIBRARIES = "torch and transformers"
    ARGUMENTS = ("transformers.training_args", "TrainingArguments")
    GENERATING_ARGUMENTS = ("transformers.training_args_seq2seq", "Seq2SeqTrainingArguments")

    def prepare(self) -> None:
        import transformers  # noqa: F401

    def trainer_class(self) -> type:
        import transformers

        return transformers.Seq2SeqTrainer if self.generates else transformers.Trainer  # type: ignore[no-any-return]

    def placement(self, topology: Topology) -> dict[str, Any]:
        return {"use_cpu": topology.device == "cpu"}  # otherwise accelerate finds the device

    def trainer_options(self, gaudi_config: Any) -> dict[str, Any]:
        """Return none; say which values of the gaudi_config node have no effect."""
        default = type(gaudi_config)()
        changed = [f.name for f in fields(gaudi_config) if getattr(gaudi_config, f.name) != getattr(default, f.name)]
        if changed:
            log.warning("gaudi_config acts on nothing with trainer.engine=transformers: %s", ", ".join(changed))
        return {}

    def divides_by_accumulation(self, args: Any) -> bool:
        return True  # trainer.py:2111 of 5.23, trainer.py:3838 of 4.55, for a loss that isn't scaled by the number of labels


ENGINE = TransformersEngine()
