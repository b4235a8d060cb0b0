"""An old command line becomes the new one: every flag has its effect, once."""

import subprocess
import sys
from pathlib import Path

import published_commands
import pytest
from conftest import ROOT, composed

from asr import engines, importing
from asr import script_arguments as data
from asr.argument_checks import ELSEWHERE
from asr.config import dotted_keys
from asr.errors import ConfigError
from asr.pipeline import Pipeline

# what the scripts' ModelArguments and DataTrainingArguments have (optimum-habana examples/speech-recognition, 2026-01)
CTC_NAMES = (
    "model_name_or_path tokenizer_name_or_path cache_dir freeze_feature_encoder attention_dropout activation_dropout feat_proj_dropout "
    "hidden_dropout final_dropout mask_time_prob mask_time_length mask_feature_prob mask_feature_length layerdrop ctc_loss_reduction "
    "ctc_zero_infinity add_adapter dataset_name dataset_dir dataset_config_name train_split_name eval_split_name audio_column_name "
    "text_column_name overwrite_cache preprocessing_num_workers max_train_samples max_eval_samples chars_to_ignore eval_metrics "
    "max_duration_in_seconds min_duration_in_seconds preprocessing_only token trust_remote_code unk_token pad_token word_delimiter_token "
    "phoneme_language"
).split()
SEQ2SEQ_NAMES = (
    "model_name_or_path config_name tokenizer_name feature_extractor_name cache_dir use_fast_tokenizer model_revision token "
    "trust_remote_code freeze_feature_encoder freeze_encoder forced_decoder_ids suppress_tokens apply_spec_augment dataset_name "
    "dataset_config_name overwrite_cache preprocessing_num_workers max_train_samples max_eval_samples audio_column_name text_column_name "
    "max_duration_in_seconds min_duration_in_seconds preprocessing_only train_split_name eval_split_name do_lower_case language task "
    "label_features_max_length"
).split()
STREAMING_NAMES = (
    "model_name_or_path tokenizer_name_or_path cache_dir freeze_feature_encoder attention_dropout activation_dropout feat_proj_dropout "
    "hidden_dropout final_dropout mask_time_prob mask_time_length mask_feature_prob mask_feature_length layerdrop ctc_loss_reduction "
    "dataset_name dataset_config_name train_split_name eval_split_name audio_column_name text_column_name overwrite_cache "
    "preprocessing_num_workers max_train_samples max_eval_samples shuffle_buffer_size chars_to_ignore eval_metrics max_duration_in_seconds "
    "preprocessing_only use_auth_token phoneme_language"
).split()
SPAWN_NAMES = "world_size hostfile use_mpi use_deepspeed master_port".split()


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (CTC_NAMES, data.ARGUMENTS[data.CTC]),
        (SEQ2SEQ_NAMES, data.ARGUMENTS[data.SEQ2SEQ]),
        (STREAMING_NAMES, data.ARGUMENTS[data.STREAMING]),
        (SPAWN_NAMES, data.LAUNCHERS[data.SPAWN]),
    ],
)
def test_no_argument_of_the_scripts_is_missing(names, listed):
    assert set(names) <= {argument.name for argument in listed}


@pytest.mark.optimum_habana
def test_no_training_argument_is_missing():
    fields = set(engines.engine("gaudi", generates=True).argument_fields())
    assert fields == {*data.TRAINING_NAMES, *(argument.name for argument in data.TRAINING)} - {"evaluation_strategy"}
    assert not set(data.TRAINING_NAMES) & set(ELSEWHERE)  # another key decides those
    assert fields - set(engines.engine("gaudi").argument_fields()) == set(data.ONLY_GENERATING)


def test_every_argument_has_a_key_or_says_why_not():
    for listed in (*data.ARGUMENTS.values(), *data.LAUNCHERS.values(), data.TRAINING):
        for argument in listed:
            assert argument.keys or argument.note, argument


# ---- the effect of each flag ----

CASES = [
    (data.CTC, "", "my/first"),
    (data.STREAMING, "", "my/first"),
    (data.SEQ2SEQ, data.WHISPER, "my/whisper-first"),
    (data.SEQ2SEQ, data.ENCODER_DECODER, "my/first"),
]
NEEDS = {"use_lazy_mode": "--use_habana", "do_eval": "-do_eval", "do_train": "-do_train"}
"""What else a command line has, or doesn't have, so that a flag shows."""
EFFECTS = [
    pytest.param(script, family, model, argument, id=f"{argument.name}-{family or script}")
    for script, family, model in CASES
    for argument in data.arguments_of(script).values()
    if not (argument.name in data.TRAINING_NAMES and family == data.ENCODER_DECODER)
]


def base(script: str, model: str, needs: str = "") -> str:
    stages = [f"--{name}" for name in ("do_train", "do_eval") if needs != f"-{name}"]
    more = [needs] if needs.startswith("--") else []
    return " ".join(["python", f"{script}.py", "--model_name_or_path", model, "--dataset_name", "my/data", *stages, *more])


def with_flag(script: str, family: str, model: str, argument: data.Argument) -> tuple[str, str]:
    value = argument.example if argument.example or argument.kind == "bool" else "7"
    if argument.name == "model_name_or_path":
        value = f"{model}-other"
    before = base(script, model, NEEDS.get(argument.name, ""))
    return before, f"{before} --{argument.name} {value}"


def said(new: importing.Imported) -> dict[str, str]:
    groups = {key.removeprefix("+").rpartition("@")[2]: value for key, value in new.groups.items()}
    return {**groups, **new.values}


def changed(before: dict[str, object], after: dict[str, object]) -> set[str]:
    return {key for key in {*before, *after} if before.get(key) != after.get(key)}


def under(key: str, keys: tuple[str, ...]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)


@pytest.mark.parametrize(("script", "family", "model", "argument"), EFFECTS)
def test_a_flag_says_its_key_and_no_other(script, family, model, argument):
    before, after = map(importing.translated, with_flag(script, family, model, argument))
    found = changed(said(before), said(after))
    if not argument.keys or (family and argument.not_for == family):
        assert not found
        assert [note for note in after.notes if note.startswith(f"--{argument.name}") and argument.note in note]
        return
    assert found
    assert [key for key in found if not under(key, argument.keys)] == []
    assert [key for key in argument.keys if not any(under(other, (key,)) for other in found)] == []


@pytest.mark.slow
@pytest.mark.parametrize(("script", "family", "model", "argument"), [case for case in EFFECTS if case.values[3].keys])
def test_a_flag_changes_its_key_and_no_other(script, family, model, argument):
    if family and argument.not_for == family:
        return
    before, after = (leaves(importing.translated(command).overrides) for command in with_flag(script, family, model, argument))
    found = changed(before, after)
    keys = tuple(key for key in argument.keys if key != "hydra.run.dir")
    assert [key for key in found if not under(key, keys)] == []
    assert [key for key in keys if not any(under(other, (key,)) for other in found)] == []


LAUNCH_CASES = [
    ("torch.distributed.launch", "python -m torch.distributed.launch {}", ""),
    (data.SPAWN, "python ../gaudi_spawn.py {}", ""),
]
LAUNCHED_WITH = {"hostfile": "--use_deepspeed", "process_per_node": "--world_size 16"}


@pytest.mark.parametrize(
    ("form", "argument"),
    [pytest.param(form, argument, id=f"{argument.name}-{name}") for name, form, _ in LAUNCH_CASES for argument in data.LAUNCHERS[name]],
)
def test_a_launcher_s_flag_says_its_key_and_no_other(form, argument):
    plain = base(data.CTC, "my/first", "--use_habana").removeprefix("python ")
    needs = LAUNCHED_WITH.get(argument.name, "")
    before = importing.translated(f"{form.format(needs)} {plain}")
    after = importing.translated(f"{form.format(f'{needs} --{argument.name} {argument.example}')} {plain}")
    found = changed(said(before), said(after))
    assert [key for key in found if not under(key, argument.keys)] == []
    assert bool(found) == bool(argument.keys)
    assert bool(argument.keys) or any(argument.note in note for note in after.notes)


def leaves(overrides: list[str]) -> dict[str, object]:
    return dict(flat(composed(*overrides)))


def flat(node: dict, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# ---- the published command lines ----

ONLY_IN_EXPERIMENTS = {
    "experiment_name",
    "experiment_version",
    "dataset.path",  # common_voice, which is a loading script
    "dataset.config_name",  # of the same; clean where it isn't
    "dataset.num_workers",  # headers are read by as many as there are cores
    "trainer.args.save_total_limit",  # ours
    "trainer.args.logging_steps",  # the script's default, which the command line doesn't say
    "trainer.args.save_steps",
    "trainer.args.push_to_hub",  # a recipe of ours doesn't
    "text.remove",  # the same characters in another order
    "model.trust_remote_code",  # no repository of the recipe brings code
    "model.task",
    "model.language",
}


@pytest.mark.optimum_habana
@pytest.mark.parametrize("name", published_commands.RECIPES)
def test_a_published_command_is_its_experiment_s_first_version(name):
    imported = composed(*importing.translated(published_commands.RECIPES[name]).overrides)
    found, released = dict(flat(imported)), leaves([f"experiment={name}/v1"])
    differ = changed(found, released) - ONLY_IN_EXPERIMENTS
    if "_ctc_" in name:  # these scripts have no flag for it: they pad to 20 s, the streaming one to the longest of a batch
        differ = {key for key in differ if not key.startswith("batching.")}
    assert differ == set()
    assert name == "common_voice_tr_ctc_streaming" or found["dataset.config_name"] == released["dataset.config_name"]
    assert set(str(found["text.remove"])) == set(str(released["text.remove"]))
    assert [problem for problem in importing.refusals(imported) if "gradient_checkpointing" not in problem] == []


def test_the_stray_flag_of_the_single_gpu_command_is_left_out():
    new = importing.translated(published_commands.SEQ2SEQ_1)
    assert new.groups["topology"] == "gpu1"
    assert [note for note in new.notes if note.startswith("--nproc_per_node 8 run_speech_recognition_seq2seq.py: belongs to")]


@pytest.mark.optimum_habana
def test_an_evaluation_alone():
    new = importing.translated(published_commands.WHISPER_SCORED)
    assert (new.values["stages"], new.values["trainer.args.per_device_eval_batch_size"]) == ("[evaluate]", "32")
    Pipeline.of(composed(*new.overrides))


def test_what_is_printed_is_a_command_for_a_shell():
    import shlex

    printed = str(importing.translated(published_commands.CTC_1))
    words = shlex.split(printed.replace("\\\n", " "), comments=True)
    assert words[:3] == ["python", "launch.py", "~experiment"]
    assert "dataset.train_split=train.100" in words
    assert composed(*words[2:])["text"]["remove"] == ',?.!-;:"“%‘”'
    assert "# --overwrite_output_dir: a run never overwrites another" in printed


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ("--learning_rate=3e-4", "trainer.args.learning_rate", "3e-4"),
        ("--freeze_feature_encoder=false", "model.freeze_feature_encoder", "false"),
        ("--no_freeze_feature_encoder", "model.freeze_feature_encoder", "false"),
        ("--freeze-feature-encoder", "model.freeze_feature_encoder", "true"),
        ("--group_by_length --fp16 True", "trainer.args.fp16", "true"),
        ("--report_to wandb tensorboard", "trainer.args.report_to", "[wandb,tensorboard]"),
        ("--lr_scheduler_kwargs '{\"num_cycles\": 3}'", "trainer.args.lr_scheduler_kwargs", "{num_cycles:3}"),
        ("--train_split_name 'train[:10%]'", "dataset.train_split", '"train[:10%]"'),
        ("--text_column_name 7", "dataset.text_column", '"7"'),
        ("--layerdrop 0.1 --layerdrop 0.2", "model.layerdrop", "0.2"),
    ],
)
def test_spellings_of_a_flag(flags, key, value):
    assert importing.translated(f"{base(data.CTC, 'my/first')} {flags}").values[key] == value


def test_values_come_through_a_shell_and_hydra_unharmed():
    flags = r""" --chars_to_ignore \' \" ':{}[](),=\\' '$' --train_split_name 'train[:10%]' --text_column_name 7 --report_to a b"""
    found = composed(*importing.translated(base(data.CTC, "a/b") + flags + """ --lr_scheduler_kwargs '{"num_cycles": 3}'""").overrides)
    assert found["text"]["remove"] == "'\":{}[](),=\\$"
    assert (found["dataset"]["train_split"], found["dataset"]["text_column"]) == ("train[:10%]", "7")
    assert found["trainer"]["args"]["report_to"] == ["a", "b"]
    assert found["trainer"]["args"]["lr_scheduler_kwargs"] == {"num_cycles": 3}


def test_variables_before_the_command():
    new = importing.translated("PT_HPU_LAZY_MODE=0 OMP_NUM_THREADS=1 HF_TOKEN=planted " + base(data.CTC, "a/b", "--use_habana"))
    assert (new.values["topology.use_lazy_mode"], new.values["topology.environment.OMP_NUM_THREADS"]) == ("false", "1")
    assert "planted" not in str(new)


def test_files_that_are_there_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("zero.json").write_text('{"bf16": {"enabled": true}, "zero_optimization": {"stage": 2}}')
    Path("gaudi_config.json").write_text('{"use_fused_adam": true, "optimum_version": "1.21"}')
    Path("hosts").write_text("a slots=8\nb slots=8\nc slots=8\n")
    Path("args.json").write_text('{"model_name_or_path": "a/b", "dataset_name": "c", "do_train": true, "eval_metrics": ["wer", "cer"]}')
    new = importing.translated(
        "python gaudi_spawn.py --hostfile hosts --use_deepspeed run_speech_recognition_ctc.py --model_name_or_path a/b --dataset_name c "
        "--do_train --use_habana --deepspeed zero.json --gaudi_config_name gaudi_config.json"
    )
    found = composed(*new.overrides)
    assert found["topology"]["deepspeed"] == {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    assert (found["topology"]["num_nodes"], found["topology"]["launcher"]) == (3, "deepspeed")
    assert found["gaudi_config"]["use_fused_adam"] is True
    new = importing.translated("python run_speech_recognition_ctc.py args.json")
    assert (new.values["stages"], new.values["trainer.eval_metrics"]) == ("[train]", "[wer,cer]")


MISTAKES = [
    ("--learning_rat 1", r"has no flag --learning_rat\. Did you mean learning_rate\?"),
    ("--language hindi", r"has no flag --language\. It is one of run_speech_recognition_seq2seq\.py"),
    ("--layerdrop 0.1 0.2", r"--layerdrop takes one value, not 2"),
    ("--layerdrop", r"--layerdrop has no value"),
    ("--freeze_feature_encoder maybe", r"--freeze_feature_encoder is true or false, not 'maybe'"),
    ("--lr_scheduler_kwargs {a", r"is not JSON"),
    ("--text_column_name 'sent", r"a quote is missing"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_a_mistake_in_a_flag(flags, message):
    with pytest.raises(ConfigError, match=message):
        importing.translated(f"{base(data.CTC, 'my/first')} {flags}")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", r"it starts with ''"),
        ("mpirun -n 8 python run_speech_recognition_ctc.py", r"it starts with 'mpirun', which isn't read"),
        ("python --do_train", r"there is no script in it"),
        ("python run_speech_recognition_cct.py", r"is none of .* Did you mean run_speech_recognition_ctc\?"),
        ("python gaudi_spawn.py --world_size 8", r"starts no script here"),
        (
            "python gaudi_spawn.py --worldsize 8 run_speech_recognition_ctc.py",
            r"gaudi_spawn has no flag --worldsize\. Did you mean world_size",
        ),
        (
            "python gaudi_spawn.py --world_size many run_speech_recognition_ctc.py --model_name_or_path a --dataset_name b",
            r"a whole number",
        ),
        ("python -m torch.distributed.lunch run_speech_recognition_ctc.py", r"isn't read; .* Did you mean torch\.distributed\.launch\?"),
        ("python run_speech_recognition_ctc.py train", r"'train' stands where"),
        ("python run_speech_recognition_ctc.py --dataset_name a", r"--model_name_or_path is missing"),
        ("python run_speech_recognition_ctc.py --model_name_or_path a", r"--dataset_name is missing"),
        ("python run_speech_recognition_ctc.py nowhere.json", r"nowhere\.json can't be read"),
    ],
)
def test_a_mistake_in_a_command(command, message):
    with pytest.raises(ConfigError, match=message):
        importing.translated(command)


def test_the_command_prints_or_says_what_is_wrong():
    asr = str(Path(sys.executable).with_name("asr"))
    line = base(data.CTC, "facebook/wav2vec2-base")
    shown = subprocess.run([asr, "import", "-"], input=line, capture_output=True, text=True, timeout=60)
    assert (shown.returncode, shown.stdout.splitlines()[0]) == (0, "python launch.py \\")
    assert "model=wav2vec2_base" in shown.stdout
    wrong = subprocess.run([asr, "import", f"{line} --layerdop 0.1"], capture_output=True, text=True, timeout=60)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: ")
    assert "Did you mean layerdrop?" in wrong.stderr


# ---- the document ----


def test_the_document_has_today_s_tables():
    document = (ROOT / "docs" / "migration.md").read_text()
    assert data.with_tables(document) == document, "python -m asr.script_arguments docs/migration.md"


def test_every_key_of_the_tables_is_there():
    choices = ("dataset=hub", "topology=hpu1"), ("model=whisper_small", "trainer=seq2seq"), ("model=wav2vec2_bart_base", "trainer=seq2seq")
    known = {key for overrides in choices for key in dotted_keys(composed(*overrides))} | {
        "hydra.run.dir",
        "model.generation.suppress_tokens",
    }
    for listed in (*data.ARGUMENTS.values(), *data.LAUNCHERS.values(), data.TRAINING):
        for key in {key for argument in listed for key in argument.keys}:
            assert key in known or key.startswith("trainer.args."), key
