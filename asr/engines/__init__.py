"""Which library's trainer trains: one file an engine, found by its file's name.

In: training arguments as a configuration spells them, and a topology. Out: the library's Trainer class and its
arguments object. A library is imported by `prepare` and what comes after it, never by importing an engine.
"""

from __future__ import annotations

import copy
import importlib
import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from asr.arguments import installed_spelling
from asr.errors import ConfigError, did_you_mean
from asr.signatures import Parameter, dataclass_fields

if TYPE_CHECKING:
    from asr.topology import Topology


class Engine(ABC):
    """A library's Trainer, and what is particular about it. A file of this package holds one, as its `ENGINE`."""

    LIBRARIES: ClassVar[str]
    """What `prepare` imports, in words."""
    ARGUMENTS: tuple[str, str]
    """Module and name of its TrainingArguments class."""
    GENERATING_ARGUMENTS: ClassVar[tuple[str, str]]
    """The same for its Seq2SeqTrainer."""
    generates = False
    """Whether it is the library's Seq2SeqTrainer."""

    def generating(self) -> Engine:
        """Return the same engine with its Seq2SeqTrainer."""
        twin = copy.copy(self)
        twin.ARGUMENTS, twin.generates = self.GENERATING_ARGUMENTS, True
        return twin

    def argument_fields(self) -> Mapping[str, Parameter]:
        """Return the fields of its TrainingArguments, read from source without importing it; empty where it isn't installed."""
        return _fields(*self.ARGUMENTS)

    def check_installed(self) -> None:
        """Raise ConfigError that says what to install; imports nothing heavy."""
        if not self.argument_fields():
            raise ConfigError(f"{self.ARGUMENTS[0].partition('.')[0]} is not installed.", key="trainer.engine")

    @abstractmethod
    def prepare(self) -> None:
        """Import what must be there before any model class is imported."""

    @abstractmethod
    def trainer_class(self) -> type:
        """Return the Trainer class that our mixins stand before."""

    @abstractmethod
    def placement(self, topology: Topology) -> dict[str, Any]:
        """Return the arguments that say on what device it computes; raise ConfigError for one that it can't."""

    @abstractmethod
    def trainer_options(self, gaudi_config: Any) -> dict[str, Any]:
        """Return the keyword arguments that only this engine's Trainer takes."""

    @abstractmethod
    def divides_by_accumulation(self, args: Any) -> bool:
        """Say whether its training_step divides the loss by the gradient accumulation steps."""

    def ready(self, trainer: Any) -> None:  # noqa: B027
        """Mend what this library lacks on the trainer that was built; most need nothing."""

    def ctc_kernel(self, args: Any) -> Callable[..., Any] | None:
        """Return the device's own CTC loss for training (asr.ctc_outputs.batch_loss); None, as most have none, takes torch's."""
        return None

    def training_arguments(self, arguments: Mapping[str, Any], topology: Topology) -> Any:
        """Return its arguments object, on the topology's device; raise ConfigError for a combination that it refuses.

        `arguments` may be in either spelling of transformers 4.55 and 5 (asr.arguments).
        """
        self.prepare()
        given = installed_spelling(arguments, self.argument_fields())
        given |= self.placement(topology)
        given |= {"ddp_backend": topology.backend} if topology.backend else {}
        given |= {"deepspeed": topology.deepspeed} if topology.deepspeed else {}
        if "logging_dir" in given and "logging_dir" not in self.argument_fields():
            # transformers 5 reads it when the TensorBoardCallback is made (integrations/integration_utils.py:602 of 5.23)
            os.environ["TENSORBOARD_LOGGING_DIR"] = str(given.pop("logging_dir"))
        if topology.device == "cpu":
            _join_cpu_ranks(topology.backend or "gloo", float(given.get("ddp_timeout", 1800)))
            _load_to_numbered_cpus()
        module, name = self.ARGUMENTS
        try:
            return getattr(importlib.import_module(module), name)(**given)
        except (ValueError, TypeError, AssertionError, ImportError) as error:
            raise ConfigError(" ".join(str(error).split()), key="trainer.args") from error


def _join_cpu_ranks(backend: str, timeout_seconds: float) -> None:
    """Make the process group of CPU ranks with ddp_timeout as its bound.

    TrainingArguments leaves it out on a CPU (transformers 4.55, training_args.py:2273; optimum-habana 1.21.2,
    training_args.py:1030): a rank that hangs would then be waited for half an hour. Accelerate takes the group that is there.
    """
    import torch.distributed

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))


@lru_cache
def _load_to_numbered_cpus() -> None:
    """Let torch.load put an optimizer's states where the engines ask for them to be put on several CPU ranks: "cpu:0".

    Accelerate numbers a CPU like a device (state.py:838 of 1.10.1), the engines load by that name (transformers 4.55, trainer.py:3448;
    optimum-habana 1.21.2, trainer.py:1615), and torch knows no such place: a run of several CPU ranks couldn't be resumed.
    """
    import torch.serialization

    torch.serialization.register_package(11, lambda _: None, lambda storage, place: storage if place.startswith("cpu:") else None)


@lru_cache
def _fields(module: str, name: str) -> Mapping[str, Parameter]:
    return dataclass_fields(module, name)


def names() -> list[str]:
    """Return the names of all engines, installed or not: the files of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


@lru_cache
def engine(name: str, *, generates: bool = False) -> Engine:
    """Return an engine by its name, with its Trainer or Seq2SeqTrainer; raise ConfigError under the trainer node's key for none."""
    if name not in names():
        raise ConfigError(f"{name!r} is not one of {', '.join(names())}.{did_you_mean(name, names())}", key="engine")
    found = importlib.import_module(f"{__name__}.{name}").ENGINE
    assert isinstance(found, Engine), f"ENGINE of {__name__}.{name} is no Engine"
    return found.generating() if generates else found
