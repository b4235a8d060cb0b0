"""Models that generate, launched as a user does: what they learn from scratch, on one rank and on two."""

import json

import pytest
from conftest import TINY

pytestmark = pytest.mark.slow


def measured(launch, folder, *overrides):
    done = launch(folder, *overrides, "hydra.run.dir=run")
    assert done.code == 0, done.err
    return json.loads((folder / "run" / "metrics.json").read_text())


@pytest.mark.parametrize(("experiment", "most"), [("spoken_digits_seq2seq", 0.15), ("spoken_digits_whisper", 0.3)])
def test_digits_are_learnt_from_scratch(experiment, most, tmp_path, own_cache):
    import subprocess

    from conftest import launch_command

    done = subprocess.run(launch_command(f"experiment={experiment}/v1", "hydra.run.dir=run"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["eval_wer"] <= most
    assert_long_recordings_are_joined_better_than_by_the_pipeline(tmp_path / "run")


def assert_long_recordings_are_joined_better_than_by_the_pipeline(run):
    """Hold the transcripts of what is many times longer than anything trained on against transformers' own chunks, as long as ours."""
    import jiwer
    import numpy as np
    import soundfile
    import transformers

    from asr import recogniser, transcription

    audio = {line["id"]: line["audio"] for line in map(json.loads, (run / "manifest" / "eval.jsonl").read_text().splitlines())}
    scored = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    references, files = [], []
    for first in range(0, 100, 20):
        utterances = scored[first : first + 20]
        references.append(" ".join(one["reference"] for one in utterances))
        files.append(run / f"joined{first}.wav")
        soundfile.write(files[-1], np.concatenate([soundfile.read(audio[one["id"]])[0] for one in utterances]), 16000)
    transcription.transcribe(str(run), list(map(str, files)), into=run / "heard")
    ours = [(run / "heard" / f"{file.stem}.txt").read_text() for file in files]
    seconds = recogniser.find(str(run)).usual_seconds
    pipeline = transformers.pipeline("automatic-speech-recognition", model=str(run / "model"), device="cpu")
    sounds = [{"raw": soundfile.read(file)[0], "sampling_rate": 16000} for file in files]
    theirs = [pipeline(sound, chunk_length_s=seconds, generate_kwargs={"max_new_tokens": 20})["text"] for sound in sounds]
    assert jiwer.wer(references, ours) < jiwer.wer(references, theirs)


@pytest.mark.parametrize("model", ["digits_encoder_decoder", "digits_whisper"])
def test_two_ranks_score_every_utterance_and_end_with_one_model(launch, tmp_path, model):
    few = ["trainer.args.max_steps=4", "trainer.args.save_strategy=no", "trainer.args.generation_max_length=16"]
    scores = measured(launch, tmp_path, "trainer=seq2seq", f"model={model}", "topology=cpu2", *TINY, *few)
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines) == 10
    assert scores["eval_loss"] > 0
    (tmp_path / "alone").mkdir()
    trained = [f"model.name_or_path='{tmp_path / 'run' / 'model'}'", "stages=[evaluate]", "trainer.args.generation_max_length=16"]
    alone = measured(launch, tmp_path / "alone", "trainer=seq2seq", f"model={model}", *TINY, *trained)
    assert alone["eval_wer"] == scores["eval_wer"]
    assert alone["eval_loss"] == pytest.approx(scores["eval_loss"], rel=1e-4)
