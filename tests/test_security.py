"""What a stranger's file, a stranger's configuration or a careless library could do, tried for real."""

import io
import json
import logging
import os
import pickle
import re
import stat
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import EVERY_ENGINE, FINISHED, PLANTED, ROOT, composed, launch_command, sound

from asr import config, engines, permissions, runs, secrets
from asr.ctc import CTCModel
from asr.errors import ConfigError, DataError
from asr.sources.kaldi import Kaldi
from asr.vocabulary import Vocabulary

SOURCES = [*(ROOT / "asr").rglob("*.py"), ROOT / "launch.py"]


# ---- what the code may not call ----

FORBIDDEN = {
    "a shell": r"shell\s*=\s*True|os\.system|os\.popen|subprocess\.getoutput",
    "an unpacker": r"extractall|archive\.extract\(|zipfile|unpack_archive",
    "a pickle": r"^\s*(?:import|from) (?:pickle(?! import UnpicklingError$)|dill|cloudpickle|joblib)"
    r"|allow_pickle=True|weights_only=False|torch\.load\(",
    "YAML that makes objects": r"yaml\.(?:load|unsafe_load|full_load)\(",
    "evaluated text": r"\b(?:eval|exec)\(",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_code_calls_no(what):
    """No archive is unpacked here: whoever adds that must check the members' paths, and this test.

    Streams read the members of tar archives in place, by offset, and write none of them under its name.
    """
    lines = [(path, number, line) for path in SOURCES for number, line in enumerate(path.read_text().splitlines(), 1)]
    found = [f"{path.relative_to(ROOT)}:{number}: {line}" for path, number, line in lines if re.search(FORBIDDEN[what], line)]
    assert [line for line in found if not re.search(r"(?:model|self|trainer)\.eval\(\)", line)] == []


# ---- pickles of strangers ----


class Malicious:
    """Touches a file wherever it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


PICKLES = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.bin")


def test_a_pickle_does_what_it_wants_where_it_is_loaded(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "touched")))
    assert (tmp_path / "touched").exists()


def small(tmp_path, tokenizer):
    """A small model of no importance, saved with its processor."""
    from test_ctc import CONVOLUTIONS, SMALL

    node = CTCModel(architecture={"model_type": "wav2vec2", **SMALL, **CONVOLUTIONS})
    model = node.load(tokenizer, new_head=True)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")  # transformers 5 saves none any more, but reads them
    node.processor(tokenizer, model).save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def test_weights_in_a_pickle_are_read_as_weights_only(tmp_path, tokenizer):
    folder, model = small(tmp_path, tokenizer)
    for name in PICKLES[1:]:
        torch.save(Malicious(tmp_path / "touched"), folder / name)
    loaded = CTCModel(name_or_path=str(folder)).load(tokenizer, new_head=False)  # an honest pytorch_model.bin loads
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    for plant in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        plant(Malicious(tmp_path / "touched"), folder / "pytorch_model.bin")
        with pytest.raises(ConfigError, match=r"the model can't be made|a pickle that holds more than weights"):
            CTCModel(name_or_path=str(folder)).load(tokenizer, new_head=False)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.ark", "a.wav", "a.flac", "a.pkl"])
def test_a_pickle_in_a_corpus_is_no_audio(tmp_path, name):
    from asr.audio import read

    (tmp_path / name).write_bytes(pickle.dumps(Malicious(tmp_path / "touched")))
    with pytest.raises(DataError):
        read(tmp_path / name, 16000)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("engine", EVERY_ENGINE)
def test_the_state_of_a_checkpoint_is_read_as_weights_only(tmp_path, engine):
    """transformers leaves it to torch's default (trainer.py:3171 of 4.55), which is right from torch 2.6 on."""
    torch.save(Malicious(tmp_path / "touched"), tmp_path / "rng_state.pth")
    used = engines.engine(engine)
    used.prepare()
    asked = SimpleNamespace(args=SimpleNamespace(world_size=1, process_index=0))
    with pytest.raises(pickle.UnpicklingError):
        used.trainer_class()._load_rng_state(asked, str(tmp_path))
    assert not (tmp_path / "touched").exists()


# ---- code of strangers ----


def test_code_of_a_repository_runs_only_when_asked_for(tmp_path, tokenizer, monkeypatch):
    """A model type that transformers doesn't know, with its classes in the repository."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, _ = small(tmp_path, tokenizer)
    touched = tmp_path / "touched"
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(touched)!r}).touch()\n")
    classes = {"AutoConfig": "own.Config", "AutoModelForCTC": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}
    for path in folder.glob("*config.json"):  # transformers 5 has the extractor's in processor_config.json
        content = json.loads(path.read_text())
        content |= {"model_type": "own", "auto_map": {**classes, "AutoFeatureExtractor": "own.Extractor"}}
        content |= {"tokenizer_class": "OwnTokenizer", "feature_extractor_type": "OwnExtractor"}
        path.write_text(json.dumps(content))
    trusted, wary = (CTCModel(name_or_path=str(folder), trust_remote_code=trust) for trust in (True, False))
    begin = {
        "model": lambda node: node.load(tokenizer, new_head=False),
        "tokenizer": lambda node: Vocabulary().tokenizer_of(str(folder), key="model.name_or_path", **node.where()),
    }
    for what, load in begin.items():
        with pytest.raises(ConfigError):
            load(wary)
        assert not touched.exists(), what
    assert not wary.trust_remote_code
    for load in begin.values():
        with pytest.raises((ConfigError, AttributeError)):  # the module is empty but for its deed
            load(trusted)
        assert touched.exists()


def test_a_metric_of_the_hub_is_no_metric():
    from asr.metrics import check_names

    with pytest.raises(ConfigError, match="nor the \\.py file"):
        check_names(["someone/metric"])


TARGETS = [
    ({"model": {"_target_": "os.system"}}, "model._target_"),
    ({"model": {"config": {"deep": [1, {"_target_": "subprocess.Popen"}]}}}, "model.config.deep.1._target_"),
    ({"model": {"_target_": "asr.config.os.system"}}, "model._target_"),
    ({"model": {"_target_": "asr.config.Path"}}, "model._target_"),
    ({"model": {"_target_": "asr.config.dataclass"}}, "model._target_"),
    ({"model": {"_target_": "asr.evaluate_modules.error_rate.ErrorRate"}}, "model._target_"),
    ({"model": {"_target_": "asr_of_mine.Model"}}, "model._target_"),
    ({"model": {"_target_": ".asr.ctc.CTCModel"}}, "model._target_"),
    ({"model": {"_target_": 3}}, "model._target_"),
    ({"dataset": {"path": "me/${oc.env:HF_TOKEN}"}}, "dataset.path"),
]


@pytest.mark.parametrize(("change", "key"), TARGETS)
def test_a_run_s_configuration_makes_our_classes_alone(change, key):
    with pytest.raises(ConfigError) as refused:
        config.check_targets(change)
    assert refused.value.key == key


def test_an_imported_dataclass_is_not_ours(monkeypatch):
    from test_config import Node

    monkeypatch.setattr(config, "Imported", Node, raising=False)
    with pytest.raises(ConfigError, match=r"^x\._target_: 'asr\.config\.Imported' is not a class of asr\.\*"):
        config.check_targets({"x": {"_target_": "asr.config.Imported"}})
    config.check_targets({"x": {"_target_": "asr.config.Imported"}}, allowed=("asr.", "test_config."))


def test_our_own_configurations_pass():
    config.check_targets(composed())
    config.check_targets(composed("dataset=kaldi", "dataset.root=/x", "batching=fixed", "topology=hpu8"))


# ---- commands in a corpus ----


@pytest.mark.parametrize("name", ["wav.scp", "segments"])
def test_a_command_in_a_kaldi_directory_is_not_run(tmp_path, name):
    folder = tmp_path / "train"
    sound(tmp_path / "a.wav")
    folder.mkdir()
    command = f"touch {tmp_path / 'touched'} |"
    files = {"wav.scp": "rec a.wav\n", "segments": "utt rec 0 0.1\n", "text": "utt one\n"}
    files[name] = {"wav.scp": f"rec {command}\n", "segments": f"utt {command}\n"}[name]
    for file, content in files.items():
        (folder / file).write_text(content)
    with pytest.raises(DataError, match=f"{name}:1"):
        list(Kaldi(root=str(tmp_path)).utterances("train"))
    assert not (tmp_path / "touched").exists()


# ---- secrets ----


def test_log_lines_are_without_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_API_KEY", "planted-0123456789")
    runs.configure_logging(tmp_path)
    try:
        try:
            raise RuntimeError("401 for https://me:sesame@host/planted-0123456789")
        except RuntimeError:
            logging.getLogger("asr").exception("with hf_%s and \x1b[31m", "a" * 30)
        logging.getLogger("urllib3").warning("Bearer %s", "planted-0123456789")
    finally:
        runs.configure_logging(None)
    text = (tmp_path / runs.LOG_FILE).read_text()
    assert "https://***@host/***" in text
    assert "Bearer ***" in text
    for secret in ("planted", "sesame", "hf_a", "\x1b"):
        assert secret not in text


def test_a_password_without_a_name_goes_too():
    assert secrets.redacted("redis://:sesame@host/0 and http://host:80/a@b") == "redis://***@host/0 and http://host:80/a@b"


def test_what_is_too_short_or_no_secret_stays(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "one")
    assert secrets.redacted("one two, vocabulary.pad_token, hf_transfer") == "one two, vocabulary.pad_token, hf_transfer"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("dataset.root=/data/planted-0123456789", r"^dataset\.root: holds the value of \$HF_TOKEN"),
        ("hydra.run.dir=planted-0123456789", r"^hydra\.run\.dir: holds"),
        ("planted-0123456789", r"^\*\*\*: holds"),
        ("+hydra.job.env_set.WANDB_API_KEY=another", r"^hydra\.job\.env_set: sets WANDB_API_KEY for all to see"),
        ("+hydra.job.env_set={A: b, HF_TOKEN: another}", r"^hydra\.job\.env_set: sets HF_TOKEN"),
    ],
)
def test_a_secret_on_the_command_line_is_refused(monkeypatch, argument, message):
    from asr.command_line import read_command_line

    monkeypatch.setenv("HF_TOKEN", "planted-0123456789")
    with pytest.raises(ConfigError, match=message):
        read_command_line([argument])


def holding(folder: Path, secret: str) -> list[str]:
    """The files below a folder that hold a secret."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_a_run_keeps_no_secret(finished, run_dir):
    assert len(PLANTED) == 2  # they were in its environment: tests/conftest.py
    for secret in PLANTED.values():
        assert holding(run_dir, secret) == []
        assert secret not in finished.out + finished.err


LEAKY = """
import os
import sys

import datasets
import evaluate

class Leaky(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        print("GET https://hub/?token=" + os.environ["HF_TOKEN"], file=sys.stderr)
        raise RuntimeError("401 Unauthorized: " + os.environ["HF_TOKEN"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["cpu", "cpu2"])
def test_a_library_that_says_the_token_is_not_written_down(tmp_path, topology):
    """While it runs, no process shows a secret in its arguments either."""
    (tmp_path / "leaky.py").write_text(LEAKY)
    asked = [*FINISHED, f"topology={topology}", f"trainer.eval_metrics=[{tmp_path / 'leaky.py'}]", "hydra.run.dir=run"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(launch_command(*asked), cwd=tmp_path, env={**os.environ, **PLANTED}, stdout=said, stderr=said)
        shown = set()
        while process.poll() is None:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    shown.add(path.read_bytes())
                except OSError:  # it has ended meanwhile
                    continue
            time.sleep(0.1)
    assert process.returncode == 1
    of_ours = [line for line in shown if str(tmp_path).encode() in line]
    assert any(b"asr.worker" in line for line in of_ours) == (topology == "cpu2")
    for secret in PLANTED.values():
        assert not any(secret.encode() in line for line in shown)
        assert holding(tmp_path / "run", secret) == []
    assert "401 Unauthorized: ***" in (tmp_path / "run" / "run.log").read_text()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["error"].count("***")
    if topology == "cpu2":
        assert "token=***" in (tmp_path / "run" / "run.log").read_text()
        assert "token=***" in (tmp_path / "said").read_text()


# ---- what is shown ----


def test_markup_and_escape_codes_are_shown_as_text(tmp_path):
    from rich.console import Console

    from asr.report import data_table, listing, summary

    nasty = "[bold]x[/bold] [link=file:///etc]y[/link] [/] \x1b]0;z\x07"
    asked = composed() | {"experiment_name": "[red]name"}
    run = runs.Run.create(tmp_path / "[blue]r", asked, command=[], overrides=[f"text.remove={nasty}"])
    run.finish(3, nasty)
    split = {"split": nasty, "utterances": 1, "hours": 1.0, "speakers": 1, "left_out": 1, "left_out_because": {nasty: 1}}
    run.save(dataset={"name": nasty, "splits": {"train": {**split, "seconds": {}, "labels": {}}}})
    for table in (summary(run), listing([run]), data_table(run)):
        text = io.StringIO()
        Console(file=text, width=400, force_terminal=True, color_system="truecolor").print(table)
        plain = re.sub(r"\x1b\[[\d;]*m", "", text.getvalue())  # rich's own colours
        assert "[bold]x[/bold] [link=file:///etc]y[/link] [/] \\x1b]0;z\\x07" in plain
        assert "[blue]r" in plain
        assert "\x1b" not in plain
        assert "\x1b]8" not in text.getvalue()


def test_a_name_with_control_characters_is_refused():
    with pytest.raises(ConfigError, match=r"^experiment_name: .*control characters"):
        config.check_root(composed() | {"experiment_name": "a\x1b[2J"})


# ---- who may read ----


def wrong_modes(folder: Path, umask: int) -> dict[str, str]:
    """Files and folders whose permissions aren't what the umask says."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o777 if path.is_dir() else 0o666) & ~umask:
            found[str(path)] = oct(mode)
    return found


def test_files_of_a_run_are_for_whom_the_umask_says(run_dir):
    assert wrong_modes(run_dir, permissions.umask()) == {}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027])
def test_a_folder_follows_the_umask(tmp_path, umask):
    outside = tmp_path / "outside"
    outside.mkdir(0o700)
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "weights").touch(0o600)
    (tmp_path / "run" / "link").symlink_to(outside)
    before = os.umask(umask)
    try:
        assert permissions.umask() == umask
        permissions.follow_umask(tmp_path / "run")
    finally:
        os.umask(before)
    assert wrong_modes(tmp_path / "run", umask) == {}
    assert stat.S_IMODE(outside.stat().st_mode) == 0o700


@pytest.mark.slow
def test_a_private_umask_makes_a_private_run(tmp_path):
    done = subprocess.run(
        launch_command(*FINISHED, "topology=cpu2", "hydra.run.dir=run"),
        cwd=tmp_path,
        env={**os.environ, "ASR_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
        umask=0o077,
    )
    assert done.returncode == 0, done.stderr
    assert wrong_modes(tmp_path / "run", 0o077) == {}
    assert wrong_modes(tmp_path / "cache", 0o077) == {}
