"""optimum-habana's GaudiTrainer: on HPUs, and on a host's CPU by the same code. The default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from asr import gaudi
from asr.engines import Engine
from asr.errors import ConfigError

if TYPE_CHECKING:
    from asr.topology import Topology


class GaudiEngine(Engine):
    """GaudiTrainer of optimum-habana 1.21.2, which pins transformers 4.55."""

    LIBRARIES = "torch, transformers and optimum-habana"
    ARGUMENTS = gaudi.ARGUMENTS_CLASS
    GENERATING_ARGUMENTS = gaudi.GENERATING_ARGUMENTS_CLASS

    def check_installed(self) -> None:
        gaudi.check_installed()

    def prepare(self) -> None:
        gaudi.optimum_habana()  # on a Gaudi it replaces some model classes

    def trainer_class(self) -> type:
        return gaudi.trainer_class(generates=self.generates)

    def training_arguments(self, arguments: Mapping[str, Any], topology: Topology) -> Any:
        # in lazy mode optimum-habana would generate on past the end (training_args.py), for as long as generation_max_length says
        arguments = {"ignore_eos": False, **arguments} if self.generates else arguments
        self.prepare()
        with gaudi.own_bart():
            return super().training_arguments(arguments, topology)

    def placement(self, topology: Topology) -> dict[str, Any]:
        if topology.device not in ("cpu", "hpu"):
            raise ConfigError(f"gaudi trains on cpu and hpu; on {topology.device} transformers does.", key="trainer.engine")
        return {
            "use_cpu": topology.device == "cpu",
            "use_habana": topology.use_habana,
            "use_lazy_mode": topology.use_lazy_mode,
        }

    def trainer_options(self, gaudi_config: Any) -> dict[str, Any]:
        return {"gaudi_config": gaudi_config.build()}

    def ready(self, trainer: Any) -> None:
        gaudi.average_gradients_on_cpu(trainer.accelerator)
        if self.generates and trainer.args.use_habana:
            gaudi.reorder_beams(trainer.model)
        elif self.generates:
            gaudi.generate_on_cpu(trainer)

    def divides_by_accumulation(self, args: Any) -> bool:
        return gaudi.divides_by_accumulation(args)

    def ctc_kernel(self, args: Any) -> Callable[..., Any] | None:
        return gaudi.ctc_kernel() if args.use_habana else None


ENGINE = GaudiEngine()
