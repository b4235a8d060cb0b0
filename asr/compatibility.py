"""Combinations that can't work, each a rule with the reason and where it was read.

In: a pipeline's light objects, and what lies on this disk. Out: ConfigErrors that name the key to change and the mend;
no device, data, network or torch is needed. Versions meant: optimum-habana 1.21.2, transformers 4.55.4, accelerate 1.10.1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from asr import gaudi
from asr.batching import MOST_GRAPHS
from asr.errors import ConfigError
from asr.signatures import function_parameters


class Combination(Protocol):
    """The parts of a pipeline that have to go together."""

    @property
    def stages(self) -> Sequence[str]: ...
    @property
    def rehearse(self) -> bool: ...
    @property
    def dataset(self) -> Any: ...
    @property
    def batching(self) -> Any: ...
    @property
    def model(self) -> Any: ...
    @property
    def gaudi_config(self) -> Any: ...
    @property
    def trainer(self) -> Any: ...
    @property
    def topology(self) -> Any: ...


TRAINING_GRAPHS = "use_hpu_graphs_for_training"
GRAPHS = (TRAINING_GRAPHS, "use_hpu_graphs_for_inference", "use_hpu_graphs")
"""Arguments that switch HPU graphs on; the last is deprecated, checked by the library like the others, and does nothing."""
UNSUPPORTED = {
    "fp16": "trainer.args.bf16=true is a Gaudi's mixed precision",
    "fp16_full_eval": "trainer.args.bf16=true is a Gaudi's mixed precision",
    "tf32": "trainer.args.bf16=true is a Gaudi's mixed precision",
    "tpu_num_cores": "leave it out",
    "tpu_metrics_debug": "leave it out",
    "mp_parameters": "leave it out",
}
"""Arguments that GaudiTrainingArguments inherits and refuses (optimum-habana, training_args.py:459-469), with the mend."""


def problems(asked: Combination, *, on_this_host: bool = True) -> list[ConfigError]:
    """Return everything that keeps this combination from working; empty when nothing does, or when no worker is to start.

    Without `on_this_host` what is installed here doesn't count: a job is submitted to another machine.

    What a hub checkpoint's config.json decides is judged once that file lies in the hub's cache: ask again then.
    """
    rules: list[Rule] = []
    if {"train", "evaluate"} & set(asked.stages):
        rules += [*(HOST_RULES if on_this_host else ()), *RULES]
    if "train" in asked.stages:
        rules += TRAINING_RULES
    return [problem for rule in rules if (problem := rule(asked)) is not None]


def habana_is_there(asked: Combination) -> ConfigError | None:
    """An HPU needs habana_frameworks: optimum-habana imports it (trainer.py:302-319), and accelerate finds no HPU without it
    (utils/imports.py:440). A rehearsal's workers have a stand-in."""
    if asked.rehearse or not (asked.topology.use_habana or asked.topology.device == "hpu") or gaudi.habana_is_installed():
        return None
    return ConfigError(
        "computes on an HPU, and habana_frameworks is not installed here: launch on a Gaudi host, or choose topology=cpu.", key="topology"
    )


def gaudi_engine_has_its_device(asked: Combination) -> ConfigError | None:
    """GaudiTrainingArguments knows CPU and HPU: "No device has been set" otherwise (optimum-habana, training_args.py:1076)."""
    if not _is_gaudi(asked) or asked.topology.device in ("cpu", "hpu"):
        return None
    return ConfigError(
        f"GaudiTrainer computes on a CPU or an HPU, not on {asked.topology.device}: choose trainer.engine=transformers, or topology=cpu.",
        key="trainer.engine",
    )


def graphs_have_an_hpu(asked: Combination) -> ConfigError | None:
    """HPU graphs need an HPU: GaudiTrainingArguments raises ValueError without use_habana (optimum-habana, training_args.py:438)."""
    if asked.topology.use_habana or not _graphs(asked):
        return None
    key = _graphs(asked)[0]
    return ConfigError("HPU graphs need an HPU, which this topology has not: set it to false.", key=key)


def graphs_have_lazy_mode(asked: Combination) -> ConfigError | None:
    """HPU graphs are lazy-only: GaudiTrainingArguments raises ValueError in eager mode, except with a torch.compile backend
    (optimum-habana, training_args.py:442)."""
    topology, args = asked.topology, asked.trainer.args
    if not topology.use_habana or topology.use_lazy_mode or args.get("torch_compile_backend") or not _graphs(asked):
        return None
    return ConfigError(
        "HPU graphs are captured in lazy mode only: set topology.use_lazy_mode=true, or this to false.", key=_graphs(asked)[0]
    )


def graph_options_have_graphs(asked: Combination) -> ConfigError | None:
    """max_hpu_graphs and disable_tensor_cache_hpu_graphs raise ValueError without graphs (optimum-habana, training_args.py:452-456)."""
    args = asked.trainer.args
    given = {"max_hpu_graphs": args.get("max_hpu_graphs") is not None}
    given["disable_tensor_cache_hpu_graphs"] = bool(args.get("disable_tensor_cache_hpu_graphs"))
    unused = [name for name, is_set in given.items() if is_set]
    if not unused or _graphs(asked):
        return None
    return ConfigError(f"there are no HPU graphs to apply it to: leave it out, or set trainer.args.{GRAPHS[1]}=true.", key=_arg(unused[0]))


def arguments_are_supported(asked: Combination) -> ConfigError | None:
    """fp16 and some others are inherited from transformers and refused (optimum-habana, training_args.py:459-469)."""
    refused = [name for name in UNSUPPORTED if asked.trainer.args.get(name)]
    if not refused or not _is_gaudi(asked):
        return None
    return ConfigError(
        f"GaudiTrainer doesn't support it: {UNSUPPORTED[refused[0]]}, or choose trainer.engine=transformers.", key=_arg(refused[0])
    )


def skipped_steps_are_ours(asked: Combination) -> ConfigError | None:
    """DeepSpeed steps within backward (accelerate, utils/deepspeed.py:281): a loss is known to be bad when its step is taken."""
    if not asked.topology.deepspeed or asked.trainer.on_nan != "skip":
        return None
    return ConfigError(
        "DeepSpeed takes a step before it can be left out: choose stop, or a topology without DeepSpeed.", key="trainer.on_nan"
    )


def deepspeed_has_an_hpu(asked: Combination) -> ConfigError | None:
    """Gaudi's DeepSpeed runs on HPUs: GaudiTrainingArguments raises ValueError otherwise (optimum-habana, training_args.py:849)."""
    if not asked.topology.deepspeed or not _is_gaudi(asked) or asked.topology.use_habana:
        return None
    return ConfigError(
        "GaudiTrainer's DeepSpeed runs on HPUs only: choose a topology of HPUs, or one without DeepSpeed.", key="topology.deepspeed"
    )


def autocast_lists_come_in_time(asked: Combination) -> ConfigError | None:
    """GaudiTrainer declares both op lists after the device is set up, and so after habana_frameworks.torch.core is imported:
    RuntimeError (optimum-habana, trainer.py:297, gaudi_configuration.py:83). Run on the rehearsal device."""
    ours, variable = asked.gaudi_config, "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST"
    given = ours.autocast_bf16_ops is not None and ours.autocast_fp32_ops is not None
    autocast = asked.trainer.args.get("bf16") or ours.use_torch_autocast
    if not (given and autocast and asked.topology.use_habana and _is_gaudi(asked)) or asked.topology.deepspeed:
        return None
    if variable in {**asked.topology.environment, **os.environ}:
        return None
    return ConfigError(
        "GaudiTrainer declares lists of ops too late, once the device is in use: leave both null, and name files that hold "
        f"them in topology.environment ({variable}, PT_HPU_AUTOCAST_FP32_OPS_LIST).",
        key="gaudi_config.autocast_bf16_ops",
    )


def fast_ddp_has_hpus(asked: Combination) -> ConfigError | None:
    """fast_ddp fuses gradients in a buffer on "hpu:0", with an HPU graph (optimum-habana, distributed/fast_ddp.py:70,
    trainer.py:1062); with one process it is never called."""
    if not _uses_fast_ddp(asked) or asked.topology.use_habana:
        return None
    return ConfigError("fast_ddp reduces gradients on HPUs only: take ddp.", key=_arg("distribution_strategy"))


def several_graphed_cards_use_fast_ddp(asked: Combination) -> ConfigError | None:
    """optimum-habana's documentation of use_hpu_graphs_for_training asks for fast_ddp with several cards: DDP reduces gradients in
    hooks of the backward pass, which a replayed graph doesn't call."""
    if not _graphs_training(asked) or asked.topology.num_processes == 1 or asked.topology.deepspeed or _uses_fast_ddp(asked):
        return None
    return ConfigError(
        f"training graphs on several cards need fast_ddp: set it, or trainer.args.{TRAINING_GRAPHS}=false.",
        key=_arg("distribution_strategy"),
    )


def layers_are_not_dropped(asked: Combination) -> ConfigError | None:
    """A skipped layer's parameters get no gradient in that step. LayerDrop is drawn by Python in forward (transformers,
    modeling_wav2vec2.py:732; optimum-habana, models/wav2vec2/modeling_wav2vec2.py:234), and only DeepSpeed ZeRO-3 and FSDP
    run the layer all the same.

    DDP waits for every gradient unless find_unused_parameters is set: RuntimeError in the next forward (run with 2 gloo
    processes). fast_ddp reduces the gradients that the first step had and no others (distributed/fast_ddp.py:76-99). A training
    graph replays the choice it was captured with: run on the rehearsal device.
    """
    try:
        dropped = {key: share for key, share in asked.model.known_layerdrop().items() if share > 0}
    except ConfigError as error:
        return error.under("model")
    if not dropped:
        return None
    key, share = next(iter(dropped.items()))
    if _graphs_training(asked):
        why, mend = "a training graph replays the layers that were dropped when it was captured", f"trainer.args.{TRAINING_GRAPHS}=false"
    elif _uses_fast_ddp(asked):
        why, mend = (
            "fast_ddp reduces the gradients of the first step's layers only",
            "trainer.args.ddp_find_unused_parameters=true with ddp",
        )
    elif _uses_ddp(asked) and not _finds_unused_parameters(asked):
        why, mend = "with several processes DDP waits for the gradients of dropped layers", "trainer.args.ddp_find_unused_parameters=true"
    else:
        return None
    return ConfigError(f"is {share:g}, but {why}: set it to 0, or {mend}.", key=f"model.{key}")


def graphs_are_few(asked: Combination) -> ConfigError | None:
    """ModuleCacher keeps 10 graphs, whatever max_hpu_graphs says: it is called with its default (optimum-habana, trainer.py:512).
    A step of an eleventh shape runs uncaptured."""
    most = asked.batching.most_shapes
    if not _graphs_training(asked) or (most is not None and most <= MOST_GRAPHS):
        return None
    if most is None:
        return ConfigError(
            f"has a new shape nearly every step, and optimum-habana keeps {MOST_GRAPHS} training graphs: choose batching=buckets or "
            f"fixed, or set trainer.args.{TRAINING_GRAPHS}=false.",
            key="batching",
        )
    return ConfigError(
        f"{most} is more than the {MOST_GRAPHS} training graphs that optimum-habana keeps: choose fewer, or set "
        f"trainer.args.{TRAINING_GRAPHS}=false.",
        key="batching.max_shapes",
    )


def graphed_models_do_not_generate(asked: Combination) -> ConfigError | None:
    """ModuleCacher changes the model in place, and its generate() refuses labels: "model_kwargs not used" (optimum-habana,
    trainer.py:512; run on the rehearsal device)."""
    if not _graphs_training(asked) or not asked.trainer.args.get("predict_with_generate"):
        return None
    return ConfigError(
        f"a model whose training is captured in graphs can't generate: set it to false, or trainer.args.{TRAINING_GRAPHS}=false.",
        key=_arg("predict_with_generate"),
    )


def decoders_beside_an_encoder_generate_without_graphs(asked: Combination) -> ConfigError | None:
    """A replayed graph of SpeechEncoderDecoder's forward (wrapped by optimum-habana, trainer.py:2062) keeps the length of the decoder's
    cache that it was captured with: found on the rehearsal device, which compares each replay with forward itself. Whisper's is
    optimum-habana's own, of static shapes."""
    graphs = "use_hpu_graphs_for_inference"
    args = asked.trainer.args
    if getattr(asked.model, "tokenizer_kind", "") != "characters" or not args.get(graphs) or not args.get("predict_with_generate"):
        return None
    if not _is_gaudi(asked) or asked.rehearse:
        return None
    return ConfigError(
        "a decoder beside an encoder generates by a cache that grows, which a graph freezes: set it to false.", key=_arg(graphs)
    )


def checkpointing_knows_this_torch(asked: Combination) -> ConfigError | None:
    """In lazy mode optimum-habana replaces torch's checkpointing and calls its generator by position (gradient_checkpointing.py:368).
    torch 2.13 has `early_stop` where the function's arguments begin: TypeError. Judged by the torch that is installed here."""
    if not asked.trainer.args.get("gradient_checkpointing") or not _is_gaudi(asked) or asked.topology.deepspeed:
        return None
    if not (asked.topology.use_habana and asked.topology.use_lazy_mode):
        return None
    if "early_stop" not in function_parameters("torch.utils.checkpoint", "_checkpoint_without_reentrant_generator"):
        return None
    return ConfigError(
        "optimum-habana's checkpointing in lazy mode doesn't fit the installed torch: set it to false, or topology.use_lazy_mode=false.",
        key=_arg("gradient_checkpointing"),
    )


def averaged_checkpoints_hold_whole_weights(asked: Combination) -> ConfigError | None:
    """DeepSpeed and FSDP save the ranks' shards in files of their own (transformers 4.55, trainer.py:3363-3371), and whole weights in
    some settings only (trainer.py:3969-3989): asr.averaging reads model.safetensors. Its mean would have to be sharded again, too."""
    sharded = "topology.deepspeed" if asked.topology.deepspeed else "trainer.args.fsdp" if asked.trainer.args.get("fsdp") else ""
    if asked.trainer.average_checkpoints is None or not sharded:
        return None
    return ConfigError(
        f"checkpoints of {sharded} are in shards, which aren't averaged: leave it null, or do without {sharded}.",
        key="trainer.average_checkpoints",
    )


NOT_IN_STREAMS = {
    "save_strategy": "a stream has no epochs to save at: take steps, with trainer.args.save_steps",
    "eval_strategy": "a stream has no epochs to evaluate at: take steps, with trainer.args.eval_steps",
    "logging_strategy": "a stream has no epochs to log at: take steps, with trainer.args.logging_steps",
    "evaluation_strategy": "a stream has no epochs to evaluate at: take eval_strategy=steps, with trainer.args.eval_steps",
    "train_sampling_strategy": "a stream's lengths aren't known beforehand: batching=buckets puts rows of like length together",
    "group_by_length": "a stream's lengths aren't known beforehand: batching=buckets puts rows of like length together",
    "auto_find_batch_size": "a stream's shapes are planned with one batch size: set it to false",
    "dataloader_drop_last": "a stream has no last batch: leave it out",
}
"""Training arguments that a stream can't follow, with the mend; a strategy is refused where it says epoch or group_by_length."""


def streams_are_counted_in_steps(asked: Combination) -> ConfigError | None:
    """A stream has no length: the loop counts the steps of one endless epoch (transformers 4.55, trainer.py:5437)."""
    args = asked.trainer.args
    if not asked.dataset.streaming or asked.rehearse:
        return None
    if args.get("num_train_epochs") is not None:
        return ConfigError(
            "a stream is trained on for so many steps: set trainer.args.max_steps, and this to null.", key=_arg("num_train_epochs")
        )
    if args.get("max_steps", -1) <= 0:
        return ConfigError("is missing: a stream has no length, so say after how many steps training ends.", key=_arg("max_steps"))
    for name, mend in NOT_IN_STREAMS.items():
        if args.get(name) in ("epoch", "group_by_length", True):
            return ConfigError(f"can't be {str(args[name]).lower()} with dataset.streaming: {mend}.", key=_arg(name))
    if args.get("dataloader_in_order") is False:
        return ConfigError("a stream that can be gone on with comes in order: leave it out.", key=_arg("dataloader_in_order"))
    return None


def plan_files_are_for_streams(asked: Combination) -> ConfigError | None:
    """A manifest's plan has the least padding for its very utterances, and no bound for others (asr/batching.py: Buckets.plan)."""
    if getattr(asked.batching, "plan_file", None) is None or asked.dataset.streaming:
        return None
    return ConfigError("is taken with dataset.streaming alone; a manifest is planned for itself: leave it null.", key="batching.plan_file")


def lora_adapts_a_checkpoint(asked: Combination) -> ConfigError | None:
    """LoRA keeps the model's weights as they are (peft 0.21.2, tuners/tuners_utils.py:523): those of a model from scratch are chance."""
    names = [getattr(asked.model, name, None) for name in ("name_or_path", "encoder_name_or_path", "decoder_name_or_path")]
    if not getattr(asked.model, "lora", None) or any(names) or asked.rehearse:
        return None
    return ConfigError("there is nothing to adapt in a model from scratch: name a checkpoint, or leave it empty.", key="model.lora")


Rule = Callable[[Combination], ConfigError | None]
HOST_RULES: tuple[Rule, ...] = (habana_is_there,)
RULES: tuple[Rule, ...] = (
    gaudi_engine_has_its_device,
    graphs_have_an_hpu,
    graphs_have_lazy_mode,
    graph_options_have_graphs,
    arguments_are_supported,
    deepspeed_has_an_hpu,
    decoders_beside_an_encoder_generate_without_graphs,
    autocast_lists_come_in_time,
)
TRAINING_RULES: tuple[Rule, ...] = (
    streams_are_counted_in_steps,
    plan_files_are_for_streams,
    skipped_steps_are_ours,
    fast_ddp_has_hpus,
    several_graphed_cards_use_fast_ddp,
    layers_are_not_dropped,
    graphs_are_few,
    graphed_models_do_not_generate,
    checkpointing_knows_this_torch,
    averaged_checkpoints_hold_whole_weights,
    lora_adapts_a_checkpoint,
)


def _arg(name: str) -> str:
    return f"trainer.args.{name}"


def _is_gaudi(asked: Combination) -> bool:
    return bool(asked.trainer.engine == "gaudi")


def _graphs(asked: Combination) -> list[str]:
    return [_arg(name) for name in GRAPHS if asked.trainer.args.get(name)]


def _graphs_training(asked: Combination) -> bool:
    return bool(asked.trainer.args.get(TRAINING_GRAPHS))


def _uses_fast_ddp(asked: Combination) -> bool:
    strategy = asked.trainer.args.get("distribution_strategy")
    return _is_gaudi(asked) and asked.topology.num_processes > 1 and strategy == "fast_ddp"


def _uses_ddp(asked: Combination) -> bool:
    sharded = asked.topology.deepspeed or asked.trainer.args.get("fsdp")
    return asked.topology.num_processes > 1 and not sharded and not _uses_fast_ddp(asked)


def _finds_unused_parameters(asked: Combination) -> bool:
    """Say what DDP is told: GaudiTrainingArguments' default is False (training_args.py:354); null, which is transformers' default,
    means True except with gradient checkpointing (trainer.py:2118, and optimum-habana's trainer.py:494)."""
    args = asked.trainer.args
    given = args.get("ddp_find_unused_parameters", False if _is_gaudi(asked) else None)
    return not args.get("gradient_checkpointing") if given is None else bool(given)
