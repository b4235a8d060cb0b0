"""python launch.py as a user runs it: the run directory's contract, overrides, sweeps, stages, exit codes."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import soundfile
import yaml
from conftest import ENGINE, FINISHED, ROOT, TINY, launch_command

SHORT = [*TINY, "trainer.args.max_steps=2", "trainer.args.save_strategy=no"]
TRAINER_CLASS = "transformers.trainer.Trainer" if ENGINE else "optimum.habana.transformers.trainer.GaudiTrainer"
GROUPS = ("dataset", "batching", "model", "gaudi_config", "trainer", "topology", "experiment")


def read(path: Path):
    return json.loads(path.read_text())


# --- the run directory -----------------------------------------------------------------------------------------------


def test_the_run_directory_is_the_contract_s(run_dir):
    files = "config.yaml run.json metrics.json predictions.jsonl history.jsonl report.html run.log vocab.json".split()
    assert {p.name for p in run_dir.iterdir()} == {*files, "model", "checkpoints", "tensorboard", "manifest"}
    assert {p.name for p in (run_dir / "checkpoints").iterdir()} == {"checkpoint-4", "checkpoint-6"}  # save_total_limit
    assert list((run_dir / "tensorboard").glob("events.*"))
    assert not list(run_dir.rglob(".*"))


def test_run_json(run_dir):
    record = read(run_dir / "run.json")
    assert (record["schema"], record["experiment"], record["version"]) == (1, "spoken_digits_ctc", "v1")
    assert (record["status"], record["exit_code"]) == ("finished", 0)
    assert record["trainer_class"] == TRAINER_CLASS
    assert "trainer.args.max_steps=6" in record["overrides"]
    assert record["command"][1].endswith("launch.py")
    assert record["packages"].get("optimum-habana") == (None if ENGINE else "1.21.2")
    assert record["dataset"]["splits"]["train"]["utterances"] == 24
    assert len(record["dataset"]["fingerprint"]) == 16
    assert record["trust_remote_code"] is False
    assert record["text"]["scoring"]
    assert record["parameters"]["trained"] == record["parameters"]["total"] > 600_000
    log = (run_dir / "run.log").read_text()
    assert f"trainer: {TRAINER_CLASS} on cpu" in log
    assert log.count("habana_frameworks is absent") == (0 if ENGINE else 1)


def test_metrics_are_flat_numbers(run_dir):
    metrics = read(run_dir / "metrics.json")
    for key in (
        "eval_wer eval_cer eval_loss train_loss train_audio_seconds_per_second padding_efficiency num_train_shapes num_eval_shapes".split()
    ):
        assert isinstance(metrics[key], (int, float)), key
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    assert 0 < metrics["padding_efficiency"] <= 1


def test_predictions_add_up_to_the_metrics(run_dir):
    import jiwer

    lines = [json.loads(line) for line in (run_dir / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["id"] for line in lines}) == 10
    assert set(lines[0]) == {"id", "reference", "hypothesis", "seconds", "errors"}
    words = sum(len(line["reference"].split()) for line in lines)
    wer = read(run_dir / "metrics.json")["eval_wer"]
    assert sum(line["errors"] for line in lines) / words == pytest.approx(wer)
    assert jiwer.wer([line["reference"] for line in lines], [line["hypothesis"] for line in lines]) == pytest.approx(wer)


def test_the_config_is_resolved_and_replayable(run_dir):
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["seed"] == 7
    assert "hydra" not in config
    assert "${" not in (run_dir / "config.yaml").read_text()


def test_the_model_is_a_pipeline_s_and_no_pickle(run_dir):
    from transformers import pipeline

    recogniser = pipeline("automatic-speech-recognition", model=str(run_dir / "model"), device="cpu")
    rows = {r["id"]: r for r in map(json.loads, (run_dir / "manifest" / "eval.jsonl").read_text().splitlines())}
    lines = [json.loads(line) for line in (run_dir / "predictions.jsonl").read_text().splitlines()]
    for line in lines[:4]:
        waveform, rate = soundfile.read(rows[line["id"]]["audio"], dtype="float32")
        said = recogniser({"raw": waveform, "sampling_rate": rate})["text"].strip()
        assert said.lower() == line["hypothesis"]  # text.case=lower: a model so little trained may say [UNK]
    assert not [p for p in (run_dir / "model").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_the_end_shows_a_short_table_and_progress_before_it(finished):
    for word in ("WER", "CER", "loss", "speed", " h in ", "a run"):
        assert word in finished.out, word
    assert "6/6" in finished.err  # the progress bar
    assert "Traceback" not in finished.err


@pytest.mark.slow
def test_the_same_config_gives_the_same_numbers(launch, finished, run_dir, tmp_path):
    again = launch(tmp_path, *FINISHED, "hydra.run.dir=again")
    assert again.code == 0, again.err
    kept = [read(p / "metrics.json") for p in (run_dir, tmp_path / "again")]
    for key in ("eval_wer", "eval_cer", "eval_loss", "train_loss", "padding_efficiency"):
        assert kept[0][key] == kept[1][key], key
    assert (run_dir / "predictions.jsonl").read_bytes() == (tmp_path / "again" / "predictions.jsonl").read_bytes()
    assert (run_dir / "model" / "model.safetensors").read_bytes() == (tmp_path / "again" / "model" / "model.safetensors").read_bytes()
    assert read(run_dir / "run.json")["config_sha256"] == read(tmp_path / "again" / "run.json")["config_sha256"]


# --- stages ----------------------------------------------------------------------------------------------------------


def test_preparing_alone_writes_no_model(launch, tmp_path):
    done = launch(tmp_path, *TINY, "stages=[prepare]", "hydra.run.dir=p")
    assert done.code == 0, done.err
    for said in ("utterances", "hours", "speakers", "seconds, mean", "labels, max", "left out"):
        assert said in done.out, said
    assert {p.name for p in (tmp_path / "p").iterdir()} == {"config.yaml", "run.json", "run.log", "report.html", "manifest", "vocab.json"}
    assert read(tmp_path / "p" / "run.json")["status"] == "finished"


@pytest.mark.slow
def test_evaluating_a_run_s_model_alone(launch, run_dir, tmp_path):
    done = launch(tmp_path, *TINY, "stages=[evaluate]", f"model.name_or_path='{run_dir / 'model'}'", "hydra.run.dir=e")
    assert done.code == 0, done.err
    new, old = read(tmp_path / "e" / "metrics.json"), read(run_dir / "metrics.json")
    assert new["eval_wer"] == old["eval_wer"]
    assert new["eval_loss"] == pytest.approx(old["eval_loss"], rel=1e-5)
    assert "train_loss" not in new
    assert not (tmp_path / "e" / "checkpoints").exists() or not list((tmp_path / "e" / "checkpoints").iterdir())
    assert read(tmp_path / "e" / "run.json")["vocabulary"]["unknown_characters"] == {}


@pytest.mark.slow
def test_a_relative_model_path_holds_in_another_directory(launch, run_dir, tmp_path):
    import shutil

    shutil.copytree(run_dir / "model", tmp_path / "mod")
    done = launch(tmp_path, *TINY, "stages=[evaluate]", "model.name_or_path=mod", "hydra.job.chdir=true", "hydra.run.dir=e")
    assert done.code == 0, done.err
    assert yaml.safe_load((tmp_path / "e" / "config.yaml").read_text())["model"]["name_or_path"] == str(tmp_path / "mod")


@pytest.mark.slow
def test_fine_tuning_from_a_run_s_model_starts_from_it_with_its_tokenizer(launch, run_dir, tmp_path):
    """A local model directory is a model: optimum-habana's script would take it for a checkpoint to resume."""
    done = launch(tmp_path, *SHORT, f"model.name_or_path='{run_dir / 'model'}'", "trainer.args.learning_rate=0", "hydra.run.dir=f")
    assert done.code == 0, done.err
    assert "tokenizer: the model's own" in done.err
    new, old = read(tmp_path / "f" / "metrics.json"), read(run_dir / "metrics.json")
    assert new["eval_loss"] == pytest.approx(old["eval_loss"], rel=1e-5)  # nothing was learnt at a rate of 0
    assert 0 < new["epoch"] <= 1
    assert not (tmp_path / "f" / "vocab.json").exists()


# --- sweeps ----------------------------------------------------------------------------------------------------------


def test_a_sweep_runs_a_job_in_its_own_directory_and_process(launch, tmp_path):
    done = launch(tmp_path, "-m", *SHORT, "trainer.args.learning_rate=2e-3", "hydra.sweep.dir=s")
    assert done.code == 0, done.err
    job = tmp_path / "s" / "0"
    assert yaml.safe_load((job / "config.yaml").read_text())["trainer"]["args"]["learning_rate"] == 2e-3
    assert read(job / "run.json")["status"] == "finished"
    assert len(read(job / "metrics.json")) > 5
    assert read(job / "ranks" / "0.json")["exit_code"] == 0
    assert "trainer:" in (job / "run.log").read_text()
    assert read(tmp_path / "s" / "sweep.json")["status"] == "finished"
    assert read(tmp_path / "s" / "jobs" / "0.json")["value"] == read(job / "metrics.json")["eval_wer"]
    assert not (tmp_path / "s" / "sweep.html").exists(), "one job needs no comparison"


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_job_that_fails(launch, tmp_path):
    grid = "batching=longest", "trainer.args.dataloader_drop_last=true", "trainer.args.per_device_train_batch_size=64,8"
    done = launch(tmp_path, "-m", *SHORT, *grid, "hydra.sweep.dir=s")
    assert done.code == 3
    assert [read(tmp_path / "s" / str(i) / "run.json")["status"] for i in range(2)] == ["failed", "finished"]
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_ctrl_c_stops_a_sweep(tmp_path, own_cache):
    command = launch_command("-m", *TINY, "trainer.args.max_steps=100000", "trainer.args.save_strategy=no", "seed=1,2", "hydra.sweep.dir=s")
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_for(lambda: "trainer: " in (tmp_path / "s" / "0" / "run.log").read_text())
        os.killpg(process.pid, signal.SIGINT)  # what a terminal sends
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert read(tmp_path / "s" / "0" / "run.json")["exit_code"] == 130
    assert not (tmp_path / "s" / "1").exists()


@pytest.mark.slow  # tests/test_supervision.py kills a parent of ranks that cost less
def test_a_worker_does_not_outlive_its_parent(tmp_path, own_cache):
    command = launch_command("-m", *TINY, "trainer.args.max_steps=100000", "trainer.args.save_strategy=no", "seed=1,2", "hydra.sweep.dir=s")
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: "trainer: " in (tmp_path / "s" / "0" / "run.log").read_text())
        process.kill()
    wait_for(lambda: read(tmp_path / "s" / "0" / "run.json")["exit_code"] == 129, seconds=20)


def test_a_sweep_with_a_bad_job_starts_none(launch, tmp_path):
    done = launch(tmp_path, "-m", *SHORT, "trainer.args.per_device_train_batch_size=8,0")
    assert done.code == 2
    assert "trainer.args.per_device_train_batch_size: 0 is out of range" in done.err
    assert done.outputs == []


@pytest.mark.slow
def test_the_readme_s_sweep_of_four(launch, tmp_path):
    grid = ["trainer.args.learning_rate=1e-3,2e-3", "trainer.args.per_device_train_batch_size=8,16", "trainer.args.max_steps=5"]
    done = launch(tmp_path, "-m", *TINY, *grid)
    assert done.code == 0, done.err
    records = [read(p) for p in (tmp_path / "outputs").rglob("run.json")]
    assert len(records) == 4
    assert {record["status"] for record in records} == {"finished"}
    configs = [yaml.safe_load(path.read_text()) for path in (tmp_path / "outputs").rglob("config.yaml")]
    assert sorted(config["trainer"]["args"]["learning_rate"] for config in configs) == [1e-3, 1e-3, 2e-3, 2e-3]


# --- bad input: one clear line, the right exit code, nothing left ------------------------------------------------------


REFUSED = {
    "model.layerdop=0.1": "model.layerdop: there is no such key. Did you mean model.layerdrop?",
    "trainer.args.learning_rate=fast": "trainer.args.learning_rate: 'fast' is not of type float.",
    "trainer.args.learning_rat=1": "Did you mean learning_rate?",
    "trainer.args.per_device_train_batch_size=0": "trainer.args.per_device_train_batch_size: 0 is out of range",
    "trainer.args.learning_rate=-1": "trainer.args.learning_rate: -1 is out of range",
    "model=wav2vec2_bert_tny": "Did you mean wav2vec2_bert_tiny?",
    "dataset.eval_split=tset": "dataset.eval_split: spoken_digits has no split 'tset'",
    "model.name_or_path=nosuch/model": "model.name_or_path: 'nosuch/model' is neither a local folder",
    "dataset=folder": "dataset.root: is missing; name the folder of the corpus.",
    "dataset=hub": "dataset.path: is missing; name a dataset on the hub",
    "batching=bucket": "Did you mean buckets?",
    "batching.max_shapes=0": "batching.max_shapes: 0 is out of range",
    "trainer.args.group_by_length=true": "trainer.args.group_by_length: can't be true with static shapes",
    "hydra.run.dir=/dev/null/x": "hydra.run.dir: /dev/null/x can't be written",
    "hydra.run.dir=/proc/x": "hydra.run.dir: /proc/x can't be written",
}


@pytest.mark.parametrize("override", list(REFUSED)[:2])
def test_a_mistake_ends_in_2_at_once_and_leaves_nothing(launch, tmp_path, override):
    done = launch(tmp_path, override)
    refused(done.code, done.err, tmp_path, REFUSED[override])


@pytest.mark.parametrize("override", list(REFUSED)[2:])
def test_so_do_others_without_a_process_for_each(tmp_path, monkeypatch, capsys, override):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr("sys.argv", launch_command(override)[1:])
    import launch

    code = launch.main()
    refused(code, capsys.readouterr().err, tmp_path, REFUSED[override])


def refused(code, err, folder, message):
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert list(folder.iterdir()) == []


def test_flags_that_hydra_does_not_know_end_in_2(launch, tmp_path):
    assert launch(tmp_path, "--nosuch").code == 2


@pytest.mark.slow
def test_arguments_that_clash_are_found_late_and_still_leave_nothing(launch, tmp_path):
    done = launch(tmp_path, *TINY, "trainer.args.load_best_model_at_end=true", "trainer.args.save_strategy=steps")
    assert done.code == 2
    assert "error: trainer.args: " in done.err
    assert "Traceback" not in done.err
    assert done.outputs == []


def test_nothing_left_of_the_data_ends_in_3(launch, tmp_path):
    done = launch(tmp_path, *TINY, "dataset.min_duration_in_seconds=60", "hydra.run.dir=r")
    assert done.code == 3
    assert "no utterance is left (24 shorter than min_duration_in_seconds (60))" in done.err
    assert "Traceback" not in done.err
    record = read(tmp_path / "r" / "run.json")
    assert (record["status"], record["exit_code"]) == ("failed", 3)


def test_an_unreadable_file_ends_in_3_and_is_named(launch, digits, tmp_path):
    import shutil

    shutil.copytree(digits.folder(), tmp_path / "corpus" / digits.folder().name)
    bad = sorted((tmp_path / "corpus").rglob("train/*.wav"))[3]
    bad.write_bytes(b"not audio")
    done = launch(tmp_path, *TINY, f"dataset.root={tmp_path / 'corpus'}", "hydra.run.dir=r", "dataset.on_bad=fail")
    assert done.code == 3
    assert f"{bad} can't be read as audio" in done.err
    assert "Traceback" not in done.err
    assert read(tmp_path / "r" / "run.json")["exit_code"] == 3


@pytest.mark.slow
def test_a_file_that_goes_bad_after_its_header_ends_in_3(launch, digits, tmp_path):
    """The header is whole, the samples are NaN: met when it is decoded, in the middle of training."""
    import shutil

    import numpy as np

    shutil.copytree(digits.folder(), tmp_path / "corpus" / digits.folder().name)
    bad = sorted((tmp_path / "corpus").rglob("train/*.wav"))[3]
    soundfile.write(bad, np.full(16000, np.nan), 16000, subtype="FLOAT")
    done = launch(tmp_path, *SHORT, f"dataset.root={tmp_path / 'corpus'}", "hydra.run.dir=r", "dataset.on_bad=fail")
    assert done.code == 3
    assert f"{bad} holds samples that are NaN" in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_a_folder_of_files_good_and_bad(launch, tmp_path):
    """Any rate, channels and format; what is bad is listed and counted, and the rest is trained on and scored."""
    import numpy as np

    folder = tmp_path / "my corpus"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        dice = np.random.default_rng(0)
        for i, (suffix, rate, channels) in enumerate([("wav", 8000, 1), ("flac", 16000, 1), ("ogg", 48000, 2), ("mp3", 44100, 2)]):
            soundfile.write(folder / split / f"{i}.{suffix}", dice.uniform(-0.3, 0.3, (rate, channels)), rate)
            (folder / split / f"{i}.txt").write_text(f"take {'abcd'[i]}")
        soundfile.write(folder / split / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
        soundfile.write(folder / split / "cut.flac", dice.uniform(-0.3, 0.3, 32000), 16000)
        cut = folder / split / "cut.flac"
        cut.write_bytes(cut.read_bytes()[:20000])
        (folder / split / "text.wav").write_text("not audio")
        soundfile.write(folder / split / "silent.wav", np.zeros(16000), 16000)
        for name, text in (("nan", "not a number"), ("cut", "cut short"), ("text", "words"), ("silent", "")):
            (folder / split / f"{name}.txt").write_text(text)
    allowed = "dataset.max_bad_fraction=0.34"  # 2 of 6
    done = launch(tmp_path, "dataset=folder", "dataset.root=my corpus", allowed, "trainer.args.num_train_epochs=1", "hydra.run.dir=r")
    assert done.code == 0, done.err
    metrics, split = read(tmp_path / "r" / "metrics.json"), read(tmp_path / "r" / "run.json")["dataset"]["splits"]["train"]
    assert split["left_out_because"] == {"unreadable audio": 1, "empty transcript after text normalisation": 1}
    assert (metrics["num_train_utterances_undecodable"], metrics["num_eval_utterances_undecodable"]) == (2, 2)
    for role in ("train", "eval"):
        lines = (tmp_path / "r" / "manifest" / f"{role}.undecodable.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["id"].rpartition("/")[2] for line in lines) == ["cut", "nan"]
    scored = [json.loads(line) for line in (tmp_path / "r" / "predictions.jsonl").read_text().splitlines()]
    assert sorted(line["reference"] for line in scored) == ["take a", "take b", "take c", "take d"]
    assert "2 shapes" in done.out or "1 shapes" in done.out
    assert "4 utterances counted for nothing" in done.out


def test_a_folder_with_files_is_left_alone(launch, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    done = launch(tmp_path, *TINY, "hydra.run.dir=precious", "vocabulary.tokenizer_name_or_path=nosuch/tokenizer")
    assert done.code == 2
    assert "precious is not empty" in done.err
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_a_directory_that_holds_a_run_is_refused(launch, run_dir):
    before = (run_dir / "run.json").read_bytes()
    done = launch(run_dir.parent, *TINY, "hydra.run.dir=a run")
    assert done.code == 2
    assert "already holds a run" in done.err
    assert (run_dir / "run.json").read_bytes() == before


def test_an_unexpected_failure_ends_in_1_with_a_traceback_in_the_log(launch, tmp_path):
    (tmp_path / "broken.py").write_text(
        "def build(*a, **k):\n    raise RuntimeError('the sky fell')\nimport asr.manifest\nasr.manifest.build = build\n"
    )
    (tmp_path / "sitecustomize.py").write_text("import broken\n")
    done = launch(tmp_path, *TINY, "stages=[prepare]", "hydra.run.dir=r", environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert done.code == 1
    record = read(tmp_path / "r" / "run.json")
    assert (record["status"], record["exit_code"], record["error"]) == ("failed", 1, "RuntimeError: the sky fell")
    assert "Traceback" in (tmp_path / "r" / "run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status", "code"), [(signal.SIGINT, "failed", 130), (signal.SIGTERM, "preempted", 75)])
def test_an_interrupted_run_says_so(tmp_path, own_cache, sent, status, code):
    command = launch_command(*TINY, "trainer.args.max_steps=100000", "trainer.args.save_strategy=no", "hydra.run.dir=r")
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        wait_for(lambda: re.search(r"trainer: ", (tmp_path / "r" / "run.log").read_text()))
        time.sleep(1)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    record = read(tmp_path / "r" / "run.json")
    assert (record["status"], record["exit_code"]) == (status, code)
    assert "Traceback" not in err


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.1)
    pytest.fail("waited in vain")


# --- help and --cfg ----------------------------------------------------------------------------------------------------


def test_help_names_every_group_and_option(launch, tmp_path):
    done = launch(tmp_path, "--help")
    assert done.code == 0
    for group in GROUPS:
        assert re.search(rf"^\s*{group}\b", done.out, re.MULTILINE), group
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            assert path.stem in done.out, path
    assert "python launch.py -m" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.optimum_habana
def test_the_overrides_that_help_shows_work():
    from conftest import composed

    from asr.pipeline import Pipeline

    text = (ROOT / "conf" / "hydra" / "help" / "asr.yaml").read_text()
    shown = re.search(r"Common overrides:\n\n(.*?)\n\n", text, re.DOTALL).group(1)
    lines = [re.match(r"(?:('[^']+'|[a-z_.+]+=\S+) ?)*", line)[0] for line in map(str.strip, shown.splitlines())]
    lines = [line for line in lines if line]
    assert len(lines) >= 25
    for line in lines:  # what stands on one line belongs together
        Pipeline.of(composed(*shlex.split(line)))


def test_cfg_job_is_the_configuration(launch, tmp_path):
    done = launch(tmp_path, "--cfg", "job", "trainer.args.max_steps=3")
    assert done.code == 0
    assert yaml.safe_load(done.out)["trainer"]["args"]["max_steps"] == 3
    assert list(tmp_path.iterdir()) == []


# --- the main job ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_experiment_learns(launch, tmp_path):
    done = launch(tmp_path, "hydra.run.dir=r")
    assert done.code == 0, done.err
    assert read(tmp_path / "r" / "metrics.json")["eval_wer"] <= 0.06


@pytest.mark.slow
def test_weights_and_biases_gets_the_metrics_of_training_and_evaluation(launch, tmp_path):
    """Its own client, which keeps what it would send: a file of records, their text as it is."""
    short = [*TINY, "trainer.args.max_steps=2", "trainer.args.logging_steps=1", "trainer.args.save_strategy=no", "hydra.run.dir=run"]
    done = launch(tmp_path, *short, "trainer.args.report_to=[wandb]", environment={"WANDB_MODE": "offline"})
    assert done.code == 0, done.err
    (records,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    content = records.read_bytes()
    assert all(name in content for name in (b"spoken_digits_ctc", b"train/loss", b"eval/wer", b"eval/loss"))
