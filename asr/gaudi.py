"""The only door to optimum.habana and habana_frameworks.

In: a configuration. Out: the real GaudiTrainer, its arguments and its GaudiConfig, on a Gaudi host or any other.
On a host with habana_frameworks nothing is supplied and nothing is patched. Where it is absent, three things
that optimum-habana 1.21.2 asks of it are answered, so that the same classes train on CPU.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from asr.errors import ConfigError

log = logging.getLogger(__name__)

ARGUMENTS_CLASS = ("optimum.habana.transformers.training_args", "GaudiTrainingArguments")
GENERATING_ARGUMENTS_CLASS = ("optimum.habana.transformers.training_args_seq2seq", "GaudiSeq2SeqTrainingArguments")
_VALIDATED_VERSION = "1.24.0"  # CURRENTLY_VALIDATED_SYNAPSE_VERSION of optimum-habana 1.21.2 (utils/misc.py)
_VERSION_QUESTION = "pip list | grep habana-torch-plugin"


@dataclass(kw_only=True)
class GaudiConfig:
    """Fields of optimum-habana's GaudiConfig; they act on an HPU only. Null leaves the library's own lists of ops."""

    use_fused_adam: bool = False
    """FusedAdamW instead of torch's AdamW (its eps stands outside the bias correction)."""
    use_fused_clip_norm: bool = False
    use_torch_autocast: bool = False
    """bf16 mixed precision although trainer.args.bf16 is not set."""
    use_dynamic_shapes: bool = False
    autocast_bf16_ops: list[str] | None = None
    autocast_fp32_ops: list[str] | None = None

    def build(self) -> Any:
        """Return optimum.habana.GaudiConfig with these values."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return optimum_habana().GaudiConfig(**given)


def habana_is_installed() -> bool:
    """Say whether this host has habana_frameworks (a rehearsal's stand-in counts)."""
    return find_spec("habana_frameworks") is not None


def _is_stand_in() -> bool:
    """Say whether habana_frameworks is a rehearsal's, which has no distribution to be listed."""
    spec = find_spec("habana_frameworks")
    return spec is not None and Path(str(spec.origin)).is_relative_to(Path(__file__).parent / "rehearsal")


def check_installed() -> None:
    """Raise ConfigError where optimum-habana is absent; imports nothing of it but the namespace that holds it."""
    if find_spec("optimum") is None or find_spec("optimum.habana") is None:
        raise ConfigError(
            "optimum-habana is not installed: pip install 'asr-gaudi[gaudi]' (or `make setup`); "
            "trainer.engine=transformers trains without it.",
            key="trainer.engine",
        )


@lru_cache
def optimum_habana() -> Any:
    """Import optimum.habana, answering what it asks of an absent habana_frameworks; raise ConfigError without it."""
    check_installed()
    if habana_is_installed():
        with _version_answered() if _is_stand_in() else contextlib.nullcontext():
            import optimum.habana
            from optimum.habana.transformers.modeling_utils import adapt_transformers_to_gaudi

        # optimum-habana does so where the training arguments are made (training_args.py:1060), which is after our models are: one of
        # them would stay transformers' own, and its attention functions (gaudi_fused_sdpa) be unknown
        with own_bart():
            adapt_transformers_to_gaudi()
        return optimum.habana
    with _version_answered():
        import optimum.habana
        from optimum.habana.transformers import trainer, training_args
        from optimum.habana.utils import misc
    from packaging.version import parse

    # asked again only by torch_compile (training_args.py:662)
    misc.get_habana_frameworks_version = training_args.get_habana_frameworks_version = lambda: parse(_VALIDATED_VERSION)
    # every log line adds the HPU's memory (trainer.py:1650); there is none to report
    trainer.get_hpu_memory_stats = lambda device=None: {}
    log.info(
        "habana_frameworks is absent: GaudiTrainer runs on CPU with its plugin version (%s) and empty HPU memory "
        "statistics supplied by asr.gaudi",
        _VALIDATED_VERSION,
    )
    return optimum.habana


@contextlib.contextmanager
def own_bart() -> Iterator[None]:
    """Keep transformers' own BART, which decodes for a warm-started model, where optimum-habana's was written for another version.

    It asks for attributes that 4.55's BART has lost: _use_sdpa (modeling_bart.py:430) and _shape (:112), an AttributeError in the
    first forward; found on the rehearsal device. Whisper's and wav2vec2's serve as they are. It is replaced where the library is
    adapted here, and again where its training arguments are made (training_args.py:1060).
    """
    import inspect

    from transformers.models.bart import modeling_bart as bart

    if "_use_sdpa" in inspect.getsource(bart.BartDecoder):
        yield
        return
    embedding = bart.BartLearnedPositionalEmbedding
    names = "BartAttention BartEncoderLayer BartDecoderLayer BartEncoder BartDecoder BartModel BartForConditionalGeneration".split()
    forwards = {getattr(bart, name): getattr(bart, name).forward for name in names}
    prepare = bart.BartForConditionalGeneration.prepare_inputs_for_generation
    try:
        yield
    finally:
        bart.BartLearnedPositionalEmbedding = embedding
        for cls, forward in forwards.items():
            cls.forward = forward
        bart.BartForConditionalGeneration.prepare_inputs_for_generation = prepare


@contextlib.contextmanager
def _version_answered() -> Iterator[None]:
    """Answer the shell command by which optimum-habana finds its plugin's version (misc.py:236), and hush its hl-smi warning."""
    run = subprocess.run

    def answer(command: Any, *args: Any, **options: Any) -> Any:
        if command == _VERSION_QUESTION:
            return subprocess.CompletedProcess(command, 0, stdout=f"habana-torch-plugin {_VALIDATED_VERSION}\n", stderr="")
        return run(command, *args, **options)

    disabled = logging.root.manager.disable
    subprocess.run = answer  # type: ignore[assignment]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        subprocess.run = run
        logging.disable(disabled)


def trainer_class(*, generates: bool = False) -> type:
    """Return the real GaudiTrainer or GaudiSeq2SeqTrainer."""
    library = optimum_habana()
    return library.GaudiSeq2SeqTrainer if generates else library.GaudiTrainer  # type: ignore[no-any-return]


HPU_GENERATION = ("lazy_mode", "hpu_graphs", "ignore_eos")
"""What GaudiSeq2SeqTrainer tells every generate() (trainer_seq2seq.py:300-312), and only one that is adapted to HPUs takes."""


def generate_on_cpu(trainer: Any) -> None:
    """Let GaudiSeq2SeqTrainer's evaluations generate on a CPU, where models keep transformers' own generate().

    A process without others is left without the barrier that it calls in eager mode whether there is a process group or not
    (trainer_seq2seq.py:360): local_rank is 0 in such a process, and -1 says that there is none.
    """
    import torch.distributed

    generate, prediction_step = trainer.model.generate, trainer.prediction_step

    def plain(*args: Any, **kwargs: Any) -> Any:
        return generate(*args, **{name: value for name, value in kwargs.items() if name not in HPU_GENERATION})

    def alone(*args: Any, **kwargs: Any) -> Any:
        if torch.distributed.is_initialized():
            return prediction_step(*args, **kwargs)
        before, trainer.args.local_rank = trainer.args.local_rank, -1
        try:
            return prediction_step(*args, **kwargs)
        finally:
            trainer.args.local_rank = before

    trainer.model.generate, trainer.prediction_step = plain, alone


def reorder_beams(model: Any) -> None:
    """Give a model that generates what optimum-habana's beam search reorders a cache of tuples by (generation/utils.py:191).

    transformers 4.55 has no such method any more for BART, Whisper or encoders with a decoder: they would fail with several beams.
    """
    if not hasattr(model, "_reorder_cache"):
        model._reorder_cache = _reordered


def _reordered(past_key_values: Any, beam_idx: Any) -> Any:
    if hasattr(past_key_values, "reorder_cache"):
        past_key_values.reorder_cache(beam_idx)
        return past_key_values
    return tuple(
        tuple(state if state is None else state.index_select(0, beam_idx.to(state.device)) for state in layer) for layer in past_key_values
    )


def divides_by_accumulation(args: Any) -> bool:
    """Say whether GaudiTrainer divides the loss by the accumulation steps itself.

    optimum-habana 1.21.2 does so only with pipelining_fwd_bwd in lazy mode (trainer.py:1751-1757: the
    division slipped into that branch); otherwise gradients of accumulated batches would add up.
    """
    return bool(args.use_lazy_mode and args.pipelining_fwd_bwd)


def ctc_kernel() -> Callable[..., Any] | None:
    """Return Habana's own CTC loss, or None where torch's has to do: on the first Gaudi, and in a plugin without it.

    It is called as kernel(log_probs, labels, input_lengths, label_lengths, blank, reduction, zero_infinity), all tensors on
    the HPU. optimum-habana 1.21.2 takes it on the same devices, within wav2vec2's forward alone (modeling_wav2vec2.py:33, :412).
    Torch's takes lengths from the host, which become constants of the graph: each batch would be compiled anew
    (gaudi-pytorch-bridge 1.19.0, hpu_ops/backend/ctc_loss_gen.cpp:121).
    """
    from habana_frameworks.torch.hpu import get_device_name

    device = get_device_name()
    if device == "GAUDI":
        return None
    try:
        from habana_frameworks.torch.hpex.kernels import CTCLoss
    except ImportError as error:
        log.warning("CTC loss: torch's, since this habana_frameworks has no kernel for %s (%s)", device, error)
        return None
    log.info("CTC loss: Habana's kernel on %s", device)
    return CTCLoss.apply  # type: ignore[no-any-return]


def average_gradients_on_cpu(accelerator: Any) -> None:
    """Wrap models of several CPU ranks in DDP, as accelerate's own prepare_model does (accelerator.py:1976 of 1.10.1).

    GaudiAccelerator's does so on HPUs alone (optimum-habana, accelerate/accelerator.py:227): on CPU each rank would train
    a model of its own on its share of the data, and nothing would say so.
    """
    from accelerate.utils import DistributedType
    from torch.nn.parallel import DistributedDataParallel

    if accelerator.distributed_type != DistributedType.MULTI_CPU:
        return
    prepare_model = accelerator.prepare_model

    def wrapped(model: Any, device_placement: bool | None = None, evaluation_mode: bool = False) -> Any:
        model = prepare_model(model, device_placement=device_placement, evaluation_mode=evaluation_mode)
        if evaluation_mode or isinstance(model, DistributedDataParallel):
            return model
        handler = accelerator.ddp_handler
        accelerator._models[-1] = DistributedDataParallel(model, **(handler.to_kwargs() if handler else {}))
        return accelerator._models[-1]

    accelerator.prepare_model = wrapped
