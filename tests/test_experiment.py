"""How a story's end is recorded, whatever it is, and what its parts read and write."""

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import soundfile
import torch
from conftest import TINY, composed
from safetensors.torch import load_file

from asr import experiment, preparing, stages, stops
from asr.errors import ConfigError, DataError
from asr.freezing import trained_parameters
from asr.labels import Labels
from asr.manifest import Manifest
from asr.pipeline import Pipeline
from asr.runs import Run, configure_logging
from asr.sources import Source, Utterance
from asr.stops import End, Preempted, Terminated, ended_by


@pytest.fixture
def run(tmp_path):
    made = Run.create(tmp_path / "outputs" / "spoken_digits_ctc" / "r", composed(*TINY), command=[], overrides=[])
    configure_logging(made.path)
    return made


def raising(error):
    def story():
        raise error

    return story


def killing(number):
    def story():
        os.kill(os.getpid(), number)
        time.sleep(5)
        return End()

    return story


@pytest.mark.parametrize(
    ("story", "code", "status", "error"),
    [
        (lambda: End(), 0, "finished", None),
        (lambda: End(137, "rank 1 was killed"), 137, "failed", "rank 1 was killed"),
        (raising(DataError("a.wav is bad")), 3, "failed", "a.wav is bad"),
        (raising(ZeroDivisionError("oops")), 1, "failed", "ZeroDivisionError: oops"),
    ],
)
def test_every_end_is_recorded_with_its_exit_code(run, story, code, status, error):
    assert experiment.guarded(run, story) == code
    record = Run.load(run.path).record
    assert (record["status"], record["exit_code"], record.get("error")) == (status, code, error)
    if code in (1, 3):
        assert str(error).rpartition(": ")[2] in (run.path / "run.log").read_text()


@pytest.mark.parametrize(
    ("story", "status", "code", "error"),
    [
        (raising(KeyboardInterrupt()), "failed", 130, "interrupted (Ctrl-C)"),
        (killing(signal.SIGTERM), "preempted", 75, "preempted (SIGTERM)"),
        (killing(signal.SIGUSR1), "preempted", 75, "preempted (SIGUSR1)"),
        (killing(signal.SIGHUP), "failed", 129, "terminated (SIGHUP)"),
        (raising(Preempted("after step 3")), "preempted", 75, "after step 3"),
    ],
)
def test_a_stop_from_outside_is_recorded_and_goes_on_up(run, monkeypatch, story, status, code, error):
    monkeypatch.setattr(stops, "_process", stops._Process())  # that of a process which has heard nothing yet
    with pytest.raises((KeyboardInterrupt, Terminated)) as stop:
        experiment.guarded(run, story)
    assert ended_by(stop.value) == End(code, error)
    record = Run.load(run.path).record
    assert (record["status"], record["exit_code"], record["error"]) == (status, code, error)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_destructor_swallows_comes_again(run):
    class Deaf:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # the handler raises here, and Python drops it

    def story():
        Deaf()
        time.sleep(10)
        return End()

    with pytest.raises(Terminated):
        experiment.guarded(run, story)
    assert Run.load(run.path).record["exit_code"] == 75


def test_a_configuration_error_found_late_leaves_nothing(run, tmp_path):
    assert experiment.guarded(run, raising(ConfigError("no such model", key="model.name_or_path"))) == 2
    assert list((tmp_path / "outputs").iterdir()) == []


@pytest.mark.parametrize("weights", ["model", "checkpoints/checkpoint-4"])
def test_a_configuration_error_after_training_loses_nothing(run, weights):
    (run.path / weights).mkdir(parents=True)
    assert experiment.guarded(run, raising(ConfigError("is wrong.", key="mine"))) == 2
    assert (run.path / weights).is_dir()
    assert Run.load(run.path).record["exit_code"] == 2


def test_a_configuration_error_of_a_later_session_loses_nothing(run):
    run.save(sessions=[{"status": "preempted"}])
    assert experiment.guarded(run, raising(ConfigError("is wrong.", key="mine"))) == 2
    assert Run.load(run.path).record["exit_code"] == 2


def test_a_run_whose_folder_is_gone_still_ends_with_its_own_code(run):
    def interrupted():
        shutil.rmtree(run.path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.guarded(run, interrupted)


def test_a_library_that_exits_is_an_unexpected_end(run):
    assert experiment.guarded(run, raising(SystemExit(2))) == 1
    assert run.record["error"] == "SystemExit: 2"


def test_what_a_child_has_recorded_stays(run):
    def child():
        Run.load(run.path).save(trainer_class="a.Trainer")
        return End(3, "bad data")

    assert experiment.guarded(run, child) == 3
    record = Run.load(run.path).record
    assert (record["error"], record["trainer_class"]) == ("bad data", "a.Trainer")


def test_preparing_writes_manifests_and_vocabulary(run):
    preparing.prepare(Pipeline.of(run.config), run)
    assert len((run.path / "manifest" / "train.jsonl").read_text().splitlines()) == 24
    built = json.loads((run.path / "vocab.json").read_text())
    assert list(built)[:4] == ["[PAD]", "[UNK]", "|", "e"]
    record = Run.load(run.path).record
    assert record["dataset"]["name"] == "spoken_digits"
    split = record["dataset"]["splits"]["eval"]
    expected = {"split": "test", "utterances": 10, "speakers": 1, "left_out": 0, "left_out_because": {}}
    assert {key: split[key] for key in expected} == expected
    assert 0 < split["seconds"]["min"] <= split["seconds"]["median"] <= split["seconds"]["max"]
    assert split["labels"]["max"] <= 3 * len("seven ")
    assert record["text"]["rules"]["case"] == "lower"
    assert record["vocabulary"] == {"built_from": ["eval", "train"], "size": len(built)}


def test_an_early_stop_and_a_mean_of_checkpoints_are_in_what_a_run_leaves(tmp_path):
    """No evaluation is better than the first by 100, so the second is the last; loading model/ gives the mean."""
    saving = [f"trainer.args.{phase}_{what}" for phase in ("eval", "save") for what in ("strategy=steps", "steps=1")]
    stopping = ["trainer.early_stopping_patience=1", "trainer.early_stopping_threshold=100", "trainer.args.metric_for_best_model=loss"]
    asked = [*TINY, *saving, *stopping, "trainer.average_checkpoints=2", "trainer.args.max_steps=4"]
    run = Run.create(tmp_path / "r", composed(*asked), command=[], overrides=[])
    configure_logging(run.path)
    preparing.prepare(Pipeline.of(run.config), run)
    stages.work(run)
    assert json.loads((run.path / "metrics.json").read_text())["stopped_early_at_step"] == 2
    assert Run.load(run.path).record["averaged_checkpoints"] == ["checkpoint-1", "checkpoint-2"]
    assert "training stopped early, at step 2" in (run.path / "run.log").read_text()
    folders = [run.path / "checkpoints" / f"checkpoint-{step}" for step in (1, 2)]
    first, second, model = (load_file(folder / "model.safetensors") for folder in (*folders, run.path / "model"))
    for name, value in model.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2, rtol=1e-6, atol=1e-7)


def test_limits_apply_to_each_split(run):
    preparing.prepare(Pipeline.of(composed(*TINY, "dataset.max_train_samples=5", "dataset.max_eval_samples=2")), run)
    splits = Run.load(run.path).record["dataset"]["splits"]
    assert (splits["train"]["utterances"], splits["eval"]["utterances"]) == (5, 2)


def test_an_empty_dataset_after_filtering_is_bad_data(run):
    with pytest.raises(DataError, match=r"no utterance is left \(24 longer than max_duration_in_seconds"):
        preparing.prepare(Pipeline.of(composed(*TINY, "dataset.max_duration_in_seconds=0.01")), run)


@dataclass(kw_only=True)
class Rows(Source):
    """Real files made by the test, whatever the split."""

    rows: list = field(default_factory=list)

    def utterances(self, split):
        return iter(self.rows)


def prepared(run, tmp_path, transcripts, *overrides, **options):
    """Prepare a corpus of one-second files with these transcripts; return what run.json says of its splits."""
    rows = []
    for i, transcript in enumerate(transcripts):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(16000), 16000)
        rows.append(Utterance(f"u{i}", tmp_path / f"{i}.wav", transcript))
    pipeline = replace(Pipeline.of(composed(*TINY, *overrides)), dataset=Rows(rows=rows, eval_split="dev", **options))
    preparing.prepare(pipeline, run)
    return Run.load(run.path).record["dataset"]["splits"]


def test_more_labels_than_frames_are_left_out_of_training_only(run, tmp_path):
    """A second has 32 frames: 32 letters fit, 32 with an equal pair among them don't."""
    splits = prepared(run, tmp_path, ["ab" * 16, "ab" * 15 + "bb", "a" * 16, "a" * 17])
    assert splits["train"]["left_out_because"] == {
        "more labels than frames (CTC needs one for each, and one more between equal neighbours)": 2
    }
    left = [json.loads(line)["id"] for line in (run.path / "manifest" / "train.left_out.jsonl").read_text().splitlines()]
    assert left == ["u1", "u3"]
    assert splits["eval"]["left_out"] == 0
    table = Manifest.load(run.path / "manifest" / "train.jsonl", "train")
    labels = Labels.load(run.path / "manifest" / "train.labels.npz")
    assert [u.id for u in table.utterances] == ["u0", "u2"]
    assert [len(row) for row in labels] == [32, 16]


def test_what_a_fixed_shape_can_t_hold_is_left_out(run, tmp_path):
    splits = prepared(run, tmp_path, ["abc", "abcdef"], "batching=fixed", "batching.labels=4")
    assert splits["train"]["left_out_because"] == splits["eval"]["left_out_because"] == {"more labels than batching.labels (4)": 1}
    with pytest.raises(DataError, match=r"no utterance is left \(2 longer than batching\.seconds \(0\.5\)"):
        prepared(run, tmp_path, ["abc", "abcdef"], "batching=fixed", "batching.seconds=0.5")


def test_what_gets_no_gradient_is_frozen_before_the_trainer_counts(run):
    """A Conformer of transformers has a pos_conv_embed that its forward doesn't use."""
    conformer = ["model=wav2vec2_tiny", "model.architecture.model_type=wav2vec2-conformer", "~model.architecture.do_stable_layer_norm"]
    pipeline = Pipeline.of(composed(*TINY, *conformer))
    preparing.prepare(pipeline, run)
    made, _ = stages.build(pipeline, run)
    frozen = {name: p.numel() for name, p in made.model.named_parameters() if not p.requires_grad}
    assert [name.partition("pos_conv_embed.conv.")[2] for name in frozen] == [
        "bias",
        *(f"parametrizations.weight.original{i}" for i in (0, 1)),
    ]
    counts = trained_parameters(made.model)
    assert counts["total"] - counts["trained"] == sum(frozen.values())
    assert "froze what would get no gradient: wav2vec2_conformer.encoder.pos_conv_embed.conv.bias" in (run.path / "run.log").read_text()


def test_labels_are_those_of_the_tokenizer(run):
    pipeline = Pipeline.of(run.config)
    preparing.prepare(pipeline, run)
    tokenizer = pipeline.tokenizer(run.path)
    table = Manifest.load(run.path / "manifest" / "train.jsonl", "train")
    labels = Labels.load(run.path / "manifest" / "train.labels.npz")
    assert [row.tolist() for row in labels] == [tokenizer(u.text).input_ids for u in table.utterances]


def test_static_shapes_refuse_what_contradicts_them():
    with pytest.raises(ConfigError, match=r"^trainer\.args\.group_by_length: can't be true with static shapes"):
        Pipeline.of(composed(*TINY, "trainer.args.group_by_length=true"))
    Pipeline.of(composed(*TINY, "batching=longest", "trainer.args.group_by_length=true"))


def test_a_source_s_configuration_error_names_the_whole_key(run, tmp_path):
    with pytest.raises(ConfigError, match=r"^dataset\.root: there is no folder"):
        preparing.prepare(Pipeline.of(composed("dataset=folder", f"dataset.root={tmp_path}/none")), run)


def test_the_same_split_twice_is_described_twice(run):
    preparing.prepare(Pipeline.of(composed(*TINY, "dataset.eval_split=train", "dataset.max_eval_samples=3")), run)
    splits = Run.load(run.path).record["dataset"]["splits"]
    assert [(role, split["split"], split["utterances"]) for role, split in splits.items()] == [("train", "train", 24), ("eval", "train", 3)]


def test_phonemes_need_a_tokenizer_that_makes_them(run, run_dir):
    with pytest.raises(ConfigError, match=r"^vocabulary\.phoneme_language: a vocabulary built here has characters"):
        Pipeline.of(composed(*TINY, "vocabulary.phoneme_language=en-us")).check_reachable()
    given = composed(*TINY, "vocabulary.phoneme_language=en-us", f"vocabulary.tokenizer_name_or_path='{run_dir}/model'")
    with pytest.raises(ConfigError, match=r"^vocabulary\.phoneme_language: Wav2Vec2CTCTokenizer makes no phonemes"):
        preparing.prepare(Pipeline.of(given), run)


def test_a_broken_noise_file_is_found_before_training(run, tmp_path):
    soundfile.write(tmp_path / "good.wav", np.zeros(1600), 16000)
    (tmp_path / "broken.wav").write_text("not audio")
    with pytest.raises(DataError, match=r"broken\.wav can't be read as audio"):
        preparing.prepare(Pipeline.of(composed(*TINY, f"augment.noise_folder='{tmp_path}'")), run)


def test_evaluating_needs_a_ctc_head_and_its_vocabulary(run_dir, tmp_path):
    import json

    with pytest.raises(ConfigError, match=r"^vocabulary\.rebuild: a new vocabulary needs training"):
        Pipeline.of(composed("stages=[evaluate]", "vocabulary.rebuild=true", f"model.name_or_path='{run_dir}/model'"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForPreTraining"]}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"^model\.name_or_path: .* has no CTC output layer"):
        Pipeline.of(composed("stages=[evaluate]", f"model.name_or_path='{tmp_path}'")).check_reachable()


def test_evaluation_alone_reads_the_evaluation_split_alone(run_dir):
    pipeline = Pipeline.of(composed(*TINY, "stages=[evaluate]", f"model.name_or_path='{run_dir}/model'"))
    assert pipeline.splits == {"eval": "test"}
    assert not pipeline.builds_vocabulary
