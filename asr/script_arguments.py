"""The command-line arguments of the published scripts, and where each went.

In: nothing. Out: facts as data: for every argument its key, or why it has none; docs/migration.md's tables.
Read from optimum-habana's examples/speech-recognition/{run_speech_recognition_ctc,run_speech_recognition_seq2seq}.py and
examples/gaudi_spawn.py (2026-01, and what earlier versions had besides), and transformers' run_speech_recognition_ctc_streaming.py.
`python -m asr.script_arguments docs/migration.md` writes the tables into that file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

CTC, STREAMING, SEQ2SEQ = "run_speech_recognition_ctc", "run_speech_recognition_ctc_streaming", "run_speech_recognition_seq2seq"
SCRIPTS = {CTC: "ctc", STREAMING: "ctc", SEQ2SEQ: "seq2seq"}
"""The scripts and what trains their models."""
ENCODER_DECODER, WHISPER = "a warm-started encoder-decoder", "Whisper"
SPAWN = "gaudi_spawn"
_NEVER_WRITTEN = "tokens come from the environment (HF_TOKEN) and are never written"
_NO_CACHE = "caches are named by a fingerprint of what they were made from, so none is ever stale"


@dataclass(frozen=True)
class Argument:
    """One argument of a script. `keys` change and nothing else; without any, `note` says why."""

    name: str
    keys: tuple[str, ...] = ()
    note: str = ""
    kind: str = "text"
    """text, bool (may stand alone) or list (takes several values)."""
    example: str = ""
    """A value that isn't the default, as the command line has it."""
    not_for: str = ""
    """ENCODER_DECODER or WHISPER, which has no such key; the note says why."""
    earlier: bool = False
    """Only earlier versions of the script have it."""


def _same(name: str, node: str, example: str, note: str = "", kind: str = "text") -> Argument:
    return Argument(name, (f"{node}.{name}",), note, kind, example)


_SHARED = (
    Argument("trust_remote_code", ("model.trust_remote_code",), "off by default, and in run.json; datasets 4 runs no dataset code", "bool"),
    Argument("token", (), _NEVER_WRITTEN, "text", "x"),
    Argument("use_auth_token", (), _NEVER_WRITTEN, "bool", earlier=True),
    Argument("overwrite_cache", (), _NO_CACHE, "bool"),
    Argument(
        "preprocessing_num_workers",
        ("dataset.num_workers",),
        "reads headers only; audio is decoded when a batch needs it, by `trainer.args.dataloader_num_workers`",
        example="3",
    ),
    _same("max_train_samples", "dataset", "50"),
    _same("max_eval_samples", "dataset", "50"),
    Argument("dataset_config_name", ("dataset.config_name",), "Common Voice on disk has `dataset.language`", example="clean"),
    Argument("train_split_name", ("dataset.train_split",), example="train.360"),
    Argument("eval_split_name", ("dataset.eval_split",), example="validation"),
    Argument("audio_column_name", ("dataset.audio_column",), example="speech"),
    Argument("text_column_name", ("dataset.text_column",), example="sentence"),
    _same(
        "max_duration_in_seconds",
        "dataset",
        "15",
        'leaves the utterance out, as the scripts do (one help says "truncates"); a bound itself is kept; the scripts\' default is 20',
    ),
    Argument("preprocessing_only", ("stages",), "`stages=[prepare]`", "bool"),
)
_MIN_DURATION = _same("min_duration_in_seconds", "dataset", "1")
_FEATURE_ENCODER = _same("freeze_feature_encoder", "model", "False", kind="bool")
_CTC_MODEL = (
    Argument("model_name_or_path", ("model",), "the option of the group that has this name, else model.name_or_path", example="my/encoder"),
    Argument(
        "tokenizer_name_or_path",
        ("vocabulary.tokenizer_name_or_path",),
        "null builds one, or takes that of a model with a CTC head",
        example="my/tokenizer",
    ),
    _same("cache_dir", "model", "cache"),
    _FEATURE_ENCODER,
    _same("attention_dropout", "model", "0.1", "null, here and below, keeps the checkpoint's own value"),
    *(_same(f"{name}_dropout", "model", "0.1") for name in ("activation", "feat_proj", "hidden", "final")),
    _same("mask_time_prob", "model", "0.3"),
    _same("mask_time_length", "model", "12"),
    _same("mask_feature_prob", "model", "0.1"),
    _same("mask_feature_length", "model", "64"),
    _same("layerdrop", "model", "0.1"),
    _same("ctc_loss_reduction", "model", "sum"),
)
_CTC_DATA = (
    Argument(
        "dataset_name",
        ("dataset.path",),
        "of `dataset=hub`; a corpus on disk has an option of its own in the group; librispeech_asr is openslr/librispeech_asr now",
        example="my/corpus",
    ),
    *_SHARED,
    Argument(
        "chars_to_ignore",
        ("text.remove",),
        "literal characters; the script makes a regular expression of them, where `!-;` is a range that deletes apostrophes and digits too",
        "list",
        ", ?",
    ),
    _same("eval_metrics", "trainer", "wer mer", kind="list"),
    _same("phoneme_language", "vocabulary", "tr"),
)
ARGUMENTS: dict[str, tuple[Argument, ...]] = {
    CTC: (
        *_CTC_MODEL,
        _same("ctc_zero_infinity", "model", "True", kind="bool"),
        _same("add_adapter", "model", "True", kind="bool"),
        *_CTC_DATA,
        Argument(
            "dataset_dir",
            ("dataset.root",),
            "a folder of Parquet, Arrow or save_to_disk files; an extracted LibriSpeech is `dataset=librispeech`",
            example="corpus",
        ),
        _MIN_DURATION,
        _same("unk_token", "vocabulary", "<unk>"),
        _same("pad_token", "vocabulary", "<pad>"),
        _same("word_delimiter_token", "vocabulary", "_"),
        Argument("use_flash_attention", ("model.attn_implementation",), "gaudi_fused_sdpa", "bool", earlier=True),
    ),
    STREAMING: (
        *_CTC_MODEL,
        *_CTC_DATA,
        Argument("shuffle_buffer_size", ("dataset.shuffle_buffer_size",), "the script itself is `dataset.streaming=true`", example="100"),
    ),
    SEQ2SEQ: (
        Argument(
            "model_name_or_path",
            ("model",),
            "the option of the group that has this name, else model.name_or_path; `model=wav2vec2_bart_base` makes a warm-started model "
            "in the run, where the script wants a folder or repository made first",
            example="my/whisper",
        ),
        Argument("config_name", (), "the checkpoint's config.json counts; its values are changed one by one in model.config", example="x"),
        Argument("tokenizer_name", ("vocabulary.tokenizer_name_or_path",), example="my/tokenizer"),
        Argument("feature_extractor_name", (), "the checkpoint's own is taken: another one's features aren't what it learnt", example="x"),
        Argument("cache_dir", ("model.cache_dir", "dataset.cache_dir"), "the script keeps datasets there too", example="cache"),
        Argument("use_fast_tokenizer", (), "the fast one is taken wherever there is one; both give the same ids", "bool"),
        Argument("model_revision", ("model.revision",), example="v1"),
        Argument(
            "freeze_feature_encoder",
            ("model.freeze_feature_encoder",),
            "Whisper has none: its convolutions belong to the encoder (model.freeze_encoder)",
            "bool",
            "False",
            not_for=WHISPER,
        ),
        _same("freeze_encoder", "model", "True", kind="bool"),
        Argument(
            "forced_decoder_ids",
            (),
            "deprecated there, and without effect: model.language and model.task take its place",
            example="1,2",
        ),
        Argument("suppress_tokens", ("model.generation.suppress_tokens",), "deprecated there", "list", "1 2"),
        Argument(
            "apply_spec_augment",
            ("model.apply_spec_augment",),
            "for Whisper alone, as in the script: an encoder-decoder is masked as model.encoder_mask_* say",
            "bool",
            "True",
            not_for=ENCODER_DECODER,
        ),
        Argument("dataset_name", ("dataset.path",), "of `dataset=hub`", example="my/corpus"),
        *_SHARED,
        _MIN_DURATION,
        Argument("do_lower_case", ("text.case",), "lower, the default here as there, or keep", "bool", "False"),
        Argument(
            "language", ("model.language",), "what Whisper is told; others know one language", example="hindi", not_for=ENCODER_DECODER
        ),
        Argument("task", ("model.task",), "what Whisper is told; others transcribe", example="translate", not_for=ENCODER_DECODER),
        Argument(
            "label_features_max_length",
            ("batching",),
            "`batching=fixed batching.seconds=null batching.labels=N`; utterances with more labels are left out and listed, where the "
            "script cuts their labels off; `batching=buckets`, the default, pads less, and leaves out none",
            example="128",
        ),
    ),
}
"""What the scripts' ModelArguments and DataTrainingArguments have."""

LAUNCHERS: dict[str, tuple[Argument, ...]] = {
    SPAWN: (
        Argument("world_size", ("topology",), "`topology=hpu8`; another number is topology.ranks_per_node", example="8"),
        Argument("hostfile", ("topology",), "topology.hostfile, for DeepSpeed, of `topology=hpu_nodes`", example="hosts"),
        Argument("use_mpi", ("topology.launcher",), "`topology.launcher=mpirun`", "bool"),
        Argument("use_deepspeed", ("topology.launcher",), "`topology.launcher=deepspeed`; `topology=hpu8_deepspeed` has both", "bool"),
        Argument("master_port", ("topology.master_port",), "null takes a free one, where gaudi_spawn.py has 29500", example="29501"),
        Argument("process_per_node", ("topology",), "topology.ranks_per_node, of topology.num_nodes servers", example="8", earlier=True),
    ),
    "torch.distributed.launch": (
        Argument(
            "nproc_per_node", ("topology",), "`topology=gpu4`, `topology=hpu8`; another number is topology.ranks_per_node", example="4"
        ),
        Argument("nnodes", ("topology.num_nodes",), "", example="2"),
        Argument("node_rank", ("topology.node_rank",), "", example="1"),
        Argument("master_addr", ("topology.master_addr",), "", example="host0"),
        Argument("master_port", ("topology.master_port",), "", example="29501"),
        Argument("use_env", (), "ranks always come from the environment", "bool"),
        Argument("standalone", (), "on one server a free port is taken", "bool"),
        Argument("max_restarts", (), "a run goes on by resume=auto", example="0"),
    ),
}
"""What starts the scripts on several devices; torchrun is torch.distributed.launch here."""

TRAINING = (
    Argument("output_dir", ("hydra.run.dir",), "without it a run lies in outputs/<experiment>/<stamp>", example="out"),
    Argument("overwrite_output_dir", (), "a run never overwrites another: it starts in an empty folder", "bool"),
    Argument("do_train", ("stages",), "`stages=[train,evaluate]` is the default", "bool"),
    Argument("do_eval", ("stages",), "", "bool"),
    Argument("do_predict", (), "the scripts themselves do nothing then; `stages=[evaluate]` writes predictions.jsonl", "bool"),
    Argument("seed", ("seed",), "seeds everything", example="7"),
    Argument(
        "use_habana",
        ("topology", "trainer.engine", "trainer.args.adam_epsilon"),
        "`topology=hpu1`, `hpu8`, ...; without it the command is transformers', for its engine and with its adam_epsilon (1e-8)",
        "bool",
    ),
    Argument("use_lazy_mode", ("topology.use_lazy_mode",), "", "bool", "False"),
    Argument("use_cpu", ("topology",), "`topology=cpu`", "bool"),
    Argument("no_cuda", ("topology",), "`topology=cpu`", "bool"),
    Argument(
        "gaudi_config_name",
        ("gaudi_config",),
        "a group: `gaudi_config=wav2vec2` and `whisper` have the published values; those of a local file come as keys",
        example="Habana/wav2vec2",
    ),
    Argument(
        "deepspeed", ("topology.deepspeed",), "the file's content, or conf/deepspeed/zero2.yaml where it isn't there", example="z.json"
    ),
    Argument("ddp_backend", ("topology.backend",), "", example="gloo"),
    Argument("local_rank", (), "a launcher numbers the processes; the topology group says how many", example="0"),
    Argument(
        "resume_from_checkpoint",
        ("resume",),
        "`resume=auto`: goes on with the newest unfinished run of this configuration; the script's own checkpoints can't be gone on from",
        example="True",
    ),
    Argument("attn_implementation", ("model.attn_implementation",), "the script gives it to the model", example="sdpa"),
    Argument("evaluation_strategy", ("trainer.args.eval_strategy",), "its name before transformers 4.46", example="steps", earlier=True),
    Argument(
        "group_by_length",
        ("trainer.args.group_by_length", "batching"),
        "with `batching=longest`; `batching=buckets`, the default, puts utterances of like length together anyway",
        "bool",
        "True",
    ),
    Argument("dataloader_drop_last", ("trainer.args.dataloader_drop_last", "batching"), "with `batching=longest`", "bool", "True"),
    Argument("length_column_name", (), "lengths are known from the headers", example="input_length"),
    Argument("generation_config", (), "model.generation holds its values", example="x"),
    Argument("sortish_sampler", (), "the batching group says which utterances share a batch", "bool"),
    Argument("hub_token", (), _NEVER_WRITTEN, example="x"),
    Argument("push_to_hub_token", (), _NEVER_WRITTEN, example="x"),
    Argument("ignore_data_skip", (), "a run that goes on takes up its batches where it stopped", "bool"),
    Argument("restore_callback_states_from_checkpoint", (), "a run that goes on takes up everything where it stopped", "bool"),
    Argument("save_only_model", (), "a checkpoint is what a run goes on from; model/ has the weights alone", "bool"),
    Argument("save_on_each_node", (), "servers share the run directory", "bool"),
    Argument("eval_do_concat_batches", (), "an evaluation is scored as a whole", "bool"),
    Argument("batch_eval_metrics", (), "an evaluation is scored as a whole", "bool"),
    Argument("prediction_loss_only", (), "trainer.eval_metrics says what is scored", "bool"),
    Argument("remove_unused_columns", (), "batches hold what the model takes and nothing else", "bool"),
    Argument("logging_nan_inf_filter", (), "trainer.on_nan says what follows a loss that isn't finite", "bool"),
)
"""Training arguments that aren't trainer.args.<the same name>."""
ONLY_GENERATING = ("predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config", "sortish_sampler")
NOT_FOR_CTC = {"label_smoothing_factor": "CTC has no smoothed labels"}
TRAINING_NAMES = tuple(
    """
    accelerator_config adafactor adam_beta1 adam_beta2 adam_epsilon adjust_throughput allow_unspec_int_on_nn_module auto_find_batch_size
    average_tokens_across_devices bf16 bf16_full_eval cache_size_limit compile_dynamic compile_from_sec_iteration context_parallel_size
    data_seed dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_broadcast_buffers
    ddp_bucket_cap_mb ddp_find_unused_parameters ddp_timeout debug disable_tensor_cache_hpu_graphs disable_tqdm distribution_strategy
    eval_accumulation_steps eval_delay eval_on_start eval_steps eval_strategy eval_use_gather_object flash_attention_causal_mask
    flash_attention_fast_softmax flash_attention_fp8 flash_attention_recompute fp16 fp16_backend fp16_full_eval fp16_opt_level fp8 fsdp
    fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap full_determinism generation_max_length generation_num_beams
    gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs greater_is_better half_precision_backend
    hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy ignore_eos include_for_metrics include_inputs_for_metrics
    include_num_input_tokens_seen include_tokens_per_second inline_inbuilt_nn_modules jit_mode_eval label_names label_smoothing_factor
    learning_rate liger_kernel_config load_best_model_at_end log_level log_level_replica log_on_each_node logging_dir logging_first_step
    logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_hpu_graphs max_steps metric_for_best_model
    minimize_memory mp_parameters neftune_noise_alpha non_blocking_data_copy num_train_epochs optim optim_args optim_target_modules
    past_index per_device_eval_batch_size per_device_train_batch_size per_gpu_eval_batch_size per_gpu_train_batch_size pipelining_fwd_bwd
    predict_with_generate profiling_record_shapes profiling_steps profiling_steps_eval profiling_warmup_steps profiling_warmup_steps_eval
    profiling_with_stack push_to_hub push_to_hub_model_id push_to_hub_organization ray_scope report_to run_name save_safetensors save_steps
    save_strategy save_total_limit sdp_on_bf16 skip_memory_metrics tf32 throughput_warmup_steps torch_compile torch_compile_backend
    torch_compile_mode torch_empty_cache_steps torchdynamo tpu_metrics_debug tpu_num_cores use_compiled_autograd use_hpu_graphs
    use_hpu_graphs_for_inference use_hpu_graphs_for_training use_ipex use_legacy_prediction_loop use_liger_kernel use_mps_device
    use_regional_compilation use_zero3_leaf_promotion warmup_ratio warmup_steps weight_decay
    """.split()
)
"""Training arguments that are trainer.args.<the same name>: fields of GaudiSeq2SeqTrainingArguments (optimum-habana 1.21.2)."""

DEFAULTS: dict[str, dict[str, str]] = {
    CTC: {"train_split_name": "train+validation", "max_duration_in_seconds": "20", "learning_rate": "5e-5", "save_strategy": "steps"},
    STREAMING: {"train_split_name": "train+validation", "max_duration_in_seconds": "20", "learning_rate": "5e-5", "save_strategy": "steps"},
    SEQ2SEQ: {"max_duration_in_seconds": "20", "learning_rate": "5e-5", "save_strategy": "steps", "predict_with_generate": "False"},
}
"""Defaults of the scripts that differ from ours and decide what is trained and kept: an imported command line says them."""


@lru_cache
def arguments_of(script: str) -> dict[str, Argument]:
    """Return every argument that a script takes, by its name."""
    generating = SCRIPTS[script] == "seq2seq"
    taken = [name for name in TRAINING_NAMES if generating or name not in ONLY_GENERATING]
    same = [Argument(name, (f"trainer.args.{name}",)) for name in taken if generating or name not in NOT_FOR_CTC]
    none = [] if generating else [Argument(name, (), why) for name, why in NOT_FOR_CTC.items()]
    special = [argument for argument in TRAINING if generating or argument.name not in ONLY_GENERATING]
    return {argument.name: argument for argument in (*same, *none, *special, *ARGUMENTS[script])}


START, END = "<!-- tables: python -m asr.script_arguments docs/migration.md -->", "<!-- end of the tables -->"
HEADINGS = (
    (f"{CTC}.py", ARGUMENTS[CTC]),
    (f"{STREAMING}.py, beside these", tuple(a for a in ARGUMENTS[STREAMING] if a not in ARGUMENTS[CTC])),
    (f"{SEQ2SEQ}.py", ARGUMENTS[SEQ2SEQ]),
    ("Training arguments with another key", TRAINING),
    (f"{SPAWN}.py", LAUNCHERS[SPAWN]),
    ("torch.distributed.launch and torchrun", LAUNCHERS["torch.distributed.launch"]),
)


def tables() -> str:
    """Return docs/migration.md's tables."""
    return "\n".join(f"## {heading}\n\n| argument | key | note |\n| --- | --- | --- |\n{_rows(listed)}" for heading, listed in HEADINGS)


def _rows(listed: Sequence[Argument]) -> str:
    rows = ((a.name, ", ".join(a.keys) or "-", "; ".join(filter(None, ["earlier versions" * a.earlier, a.note]))) for a in listed)
    return "".join(f"| {name} | {key} | {note} |\n" for name, key, note in rows)


def with_tables(document: str) -> str:
    """Return a document with the tables of today between their marks."""
    before, _, rest = document.partition(START)
    return f"{before}{START}\n\n{tables()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
