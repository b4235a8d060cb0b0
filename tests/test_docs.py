"""What the documents say is held against the code."""

import re

import pytest
from conftest import ROOT, composed

from asr.config import dotted_keys
from asr.pipeline import Pipeline

# the arguments of the published script's two dataclasses (optimum-habana examples/speech-recognition, 2026-01)
MODEL_ARGUMENTS = (
    "model_name_or_path tokenizer_name_or_path cache_dir freeze_feature_encoder attention_dropout activation_dropout feat_proj_dropout "
    "hidden_dropout final_dropout mask_time_prob mask_time_length mask_feature_prob mask_feature_length layerdrop ctc_loss_reduction "
    "ctc_zero_infinity add_adapter"
).split()
DATA_ARGUMENTS = (
    "dataset_name dataset_config_name train_split_name eval_split_name audio_column_name text_column_name overwrite_cache "
    "preprocessing_num_workers max_train_samples max_eval_samples chars_to_ignore eval_metrics max_duration_in_seconds "
    "min_duration_in_seconds preprocessing_only token trust_remote_code unk_token pad_token word_delimiter_token phoneme_language"
).split()

ROWS = re.findall(r"^\| (\w+) \| (\S+) \|(.*)\|$", (ROOT / "docs" / "published-script.md").read_text(), re.MULTILINE)
ROWS = [row for row in ROWS if row[0] not in ("argument", "---")]


def test_no_argument_is_missing():
    assert set(MODEL_ARGUMENTS + DATA_ARGUMENTS) <= {argument for argument, _, _ in ROWS}


@pytest.mark.parametrize(("argument", "key", "note"), ROWS)
def test_every_key_exists_or_says_why_not(argument, key, note):
    if key == "-":
        assert note.strip()
    elif key != "hydra.run.dir":
        assert key in {*dotted_keys(composed()), *dotted_keys(composed("dataset=hub"))}


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_the_readme_has_a_line_for_every_room():
    rooms = {path.name for path in (ROOT / "asr").glob("*.py")} - {"__init__.py"}
    assert [room for room in sorted(rooms) if not re.search(rf"^    {re.escape(room)}\s+\w", readme(), re.MULTILINE)] == []


def test_the_readme_names_every_corpus():
    corpora = {path.stem for path in (ROOT / "conf" / "dataset").glob("*.yaml")}
    assert [corpus for corpus in sorted(corpora) if f"dataset={corpus} " not in readme() and corpus != "spoken_digits"] == []


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", readme(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("python launch.py")]


@pytest.mark.parametrize("command", commands())
def test_the_readme_s_commands_compose(command):
    import shlex

    from asr import composition

    asked = composition.read_command_line(shlex.split(command, comments=True)[2:])
    for overrides in asked.jobs:
        Pipeline.of(composed(*overrides))


def test_the_readme_s_commands_are_several():
    assert len(commands()) >= 6


def test_make_targets_are_real():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", readme(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
