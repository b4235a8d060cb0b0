"""Models that generate, through the real trainers: what batch size, padding and accumulation may not change, and what they hear."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch
import transformers
from conftest import EVERY_ENGINE, INSTALLED_ENGINES, TINY, composed

from asr import preparing, stages, trainer
from asr.errors import ConfigError
from asr.pipeline import Pipeline
from asr.runs import Run
from asr.seq2seq_outputs import up_to_end

MODELS = ["digits_encoder_decoder", "digits_whisper"]
SLOWER = {name: pytest.param(name, marks=pytest.mark.slow) for name in MODELS}
SLOW_BESIDE_GAUDI = [pytest.mark.slow] if "gaudi" in INSTALLED_ENGINES else []
"""Marks of what another engine does as well: where there is one alone, it is tried."""
SMALL = {
    "digits_encoder_decoder": ["model.encoder.hidden_size=32", "model.encoder.output_hidden_size=32", "model.encoder.intermediate_size=32",
                               "model.decoder.d_model=32", "model.decoder.decoder_ffn_dim=32"],
    "digits_whisper": [f"model.architecture.{name}=32" for name in ("d_model", "encoder_ffn_dim", "decoder_ffn_dim")]
                      + ["model.architecture.encoder_layers=1", "model.architecture.max_target_positions=40"],
}  # fmt: skip


def built(tmp_path, *overrides, model="digits_encoder_decoder"):
    """Return a trainer over the small corpus, with its scorer and its run, by the very functions that a launch calls."""
    quiet = ["trainer.args.report_to=none", "trainer.try_shapes=false", "dataset.eval_split=test", "trainer.args.generation_max_length=24"]
    quiet += ["model.generation.min_new_tokens=8"]  # untrained, but not silent
    config = composed("trainer=seq2seq", f"model={model}", *SMALL[model], *quiet, *TINY, *overrides)
    pipeline, run = Pipeline.of(config), Run.create(tmp_path / "r", config, command=[], overrides=[])
    preparing.prepare(pipeline, run)
    made, scorer = stages.build(pipeline, run)
    return made, scorer, run


@pytest.mark.optimum_habana
def test_the_class_is_the_real_gaudi_seq2seq_trainer_under_our_mixin(tmp_path):
    made, _, _ = built(tmp_path)
    assert trainer.class_path(made) == "optimum.habana.transformers.trainer_seq2seq.GaudiSeq2SeqTrainer"
    assert type(made.args).__name__ == "GaudiSeq2SeqTrainingArguments"
    assert made.args.ignore_eos is False


@pytest.mark.parametrize("model", [MODELS[0], SLOWER[MODELS[1]]])
def test_evaluation_is_the_same_at_any_batch_size_and_padding(tmp_path, model):
    results = []
    ways = ["1"], ["3", "batching=longest"], ["16"], ["16", "batching=fixed", "batching.seconds=6", "batching.labels=40"]
    for number, (size, *batching) in enumerate(ways):
        made, scorer, _ = built(tmp_path / str(number), f"trainer.args.per_device_eval_batch_size={size}", *batching, model=model)
        end = made.processing_class.tokenizer.eos_token_id
        scorer.decode = lambda tokens, end=end: [" ".join(map(str, row)) for row in up_to_end(tokens, -1, end)]
        results.append((made.evaluate(), scorer.predictions))
    assert any(line["hypothesis"] for line in results[0][1])  # untrained, but not silent
    for measured, predictions in results[1:]:
        assert predictions == results[0][1]
        assert measured["eval_wer"] == results[0][0]["eval_wer"]
        assert measured["eval_loss"] == pytest.approx(results[0][0]["eval_loss"], rel=1e-3)


@pytest.mark.parametrize("model", [SLOWER[MODELS[0]], MODELS[1]])
def test_what_is_heard_is_what_transformers_generates_alone_and_the_loss_its_own(tmp_path, model):
    made, scorer, _ = built(tmp_path, "trainer.args.generation_num_beams=2", model=model)
    tokenizer, net = made.processing_class.tokenizer, made.model.eval()
    unheard = [*range(tokenizer.eos_token_id), *range(tokenizer.eos_token_id + 1, len(tokenizer))]
    spoken = tokenizer("aeiou abcdefgh").input_ids
    net.generation_config.suppress_tokens = sorted(set(unheard) - set(spoken[-13:]))  # every token is heard, the first too
    measured = made.evaluate()
    total = labels = heard = 0
    for number, line in enumerate(scorer.predictions):
        batch = dict(made.data_collator([made.eval_dataset[number]]))
        facts = batch.pop("facts")
        with torch.no_grad():
            loss = type(net).forward(net, **{k: v for k, v in batch.items() if k != "decoder_input_ids"}).loss.item()
        total, labels = total + loss * facts.label_lengths[0], labels + facts.label_lengths[0]
        given = {k: v for k, v in batch.items() if k not in ("labels", "decoder_input_ids")}
        tokens = type(net).generate(net, **given, max_length=24, num_beams=2)
        assert " ".join(tokenizer.decode(tokens[0], skip_special_tokens=True).split()) == line["hypothesis"]
        heard += bool(line["hypothesis"])
    assert heard == 10
    assert measured["eval_loss"] == pytest.approx(total / labels, rel=1e-4)


def test_training_s_loss_is_the_mean_over_labels_and_accumulates(tmp_path):
    steps = ["max_steps=2", "learning_rate=1e-2", "warmup_steps=0", "optim=sgd", "save_strategy=no", "max_grad_norm=0"]
    weights = []
    for size, accumulation in ((4, 1), (2, 2)):
        made, _, _ = built(
            tmp_path / str(size),
            *(f"trainer.args.{step}" for step in steps),
            f"trainer.args.per_device_train_batch_size={size}",
            f"trainer.args.gradient_accumulation_steps={accumulation}",
        )
        count = made.train_dataset.labels.lengths
        rows = next(  # two pairs of as many labels: a mean of means is then the mean of all
            rows for rows in combinations(range(24), 4) if count[rows[0]] + count[rows[1]] == count[rows[2]] + count[rows[3]]
        )
        halves = [list(rows[i : i + size]) for i in range(0, 4, size)]
        made.get_train_dataloader = lambda made=made, halves=halves: made._loader(made.train_dataset, halves * 2, made.data_collator)
        made.train()
        weights.append(torch.cat([p.detach().flatten() for p in made.model.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("engine", [EVERY_ENGINE[0], pytest.param(EVERY_ENGINE[1], marks=SLOW_BESIDE_GAUDI)])
@pytest.mark.parametrize("model", MODELS)
def test_shapes_are_those_of_the_plan_and_the_model_learns(tmp_path, engine, model):
    made, _scorer, _run = built(
        tmp_path, f"trainer.engine={engine}", "trainer.args.max_steps=12", "trainer.args.learning_rate=1e-2", "batching.max_shapes=3",
        "trainer.args.save_strategy=no", "trainer.args.logging_steps=1", model=model,
    )  # fmt: skip
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    planned = {(shape.rows, shape.length, shape.labels) for shape in made.planned_shapes()["train"]}
    met = {(shape[0], shape[2] if model == "digits_whisper" else shape[1], shape[-1]) for shape in made.forwarded["train"].shapes}
    assert met <= planned and len(planned) <= 3
    if model == "digits_whisper":
        assert {shape[1] for shape in planned} == {300}, "one window"


@pytest.mark.slow
@pytest.mark.skipif("gaudi" not in INSTALLED_ENGINES, reason="needs both engines")
def test_engines_give_equal_losses_step_by_step(tmp_path):
    losses = []
    for engine in ("gaudi", "transformers"):
        made, _, _ = built(tmp_path / engine, f"trainer.engine={engine}", "trainer.args.max_steps=4", "trainer.args.logging_steps=1",
                           "trainer.args.save_strategy=no")  # fmt: skip
        made.train()
        losses.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("model", [SLOWER[MODELS[0]], MODELS[1]])
def test_gradient_checkpointing_changes_no_weight(tmp_path, model):
    """Whisper's decoder hands its layers what the encoder heard by name: torch's reentrant way would go back through the encoder twice."""
    weights = []
    for checkpointing in ("false", "true"):
        made, _, _ = built(
            tmp_path / checkpointing, f"trainer.args.gradient_checkpointing={checkpointing}", "trainer.args.max_steps=2",
            "trainer.args.save_strategy=no", "trainer.args.learning_rate=1e-3", model=model,
        )  # fmt: skip
        made.train()
        weights.append(torch.cat([p.detach().flatten() for p in made.model.parameters()]))
    torch.testing.assert_close(weights[1], weights[0])


def test_without_generation_the_loss_alone_is_scored(tmp_path):
    made, scorer, _ = built(tmp_path, "trainer.args.predict_with_generate=false")
    measured = made.evaluate()
    assert "eval_loss" in measured and "eval_wer" not in measured
    assert scorer.predictions == []


def test_transcripts_of_too_many_labels_are_left_out_counted_and_listed(tmp_path):
    _, _, run = built(
        tmp_path, "model.architecture.max_target_positions=20", "trainer.args.generation_max_length=20", model="digits_whisper"
    )
    splits = Run.load(run.path).record["dataset"]["splits"]
    assert 0 < splits["train"]["left_out_because"]["more labels than the decoder takes (20)"] < 24
    listed = [json.loads(line) for line in (run.path / "manifest" / "train.left_out.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in listed} == {"more labels than the decoder takes (20)"}


def test_audio_longer_than_whisper_hears_is_not_trained_on(tmp_path):
    _, _, run = built(
        tmp_path, "model.architecture.max_source_positions=50", "model.feature_extractor.chunk_length=1", model="digits_whisper"
    )
    splits = Run.load(run.path).record["dataset"]["splits"]
    assert splits["train"]["left_out_because"]["longer than the model hears (1 s)"] > 0
    assert "longer than the model hears (1 s)" not in splits["eval"]["left_out_because"]


@pytest.mark.slow
def test_a_saved_run_s_model_is_loaded_by_a_pipeline_and_scores_the_same_without_training(tmp_path):
    made, scorer, _run = built(tmp_path, "trainer.args.max_steps=3", "trainer.args.save_strategy=no")
    made.train()
    measured = made.evaluate()
    made.save_model(str(tmp_path / "model"))
    if not (tmp_path / "model" / "preprocessor_config.json").exists():
        made.processing_class.feature_extractor.save_pretrained(tmp_path / "model")
    config = composed("trainer=seq2seq", "model=digits_encoder_decoder", "stages=[evaluate]", f"model.name_or_path={tmp_path / 'model'}",
                      "dataset.eval_split=test", "trainer.args.generation_max_length=24", "trainer.args.report_to=none", *TINY)  # fmt: skip
    pipeline, again = Pipeline.of(config), Run.create(tmp_path / "again", config, command=[], overrides=[])
    pipeline.check_reachable()
    preparing.prepare(pipeline, again)
    other, rescored = stages.build(pipeline, again)
    assert other.evaluate()["eval_wer"] == measured["eval_wer"]
    assert rescored.predictions == scorer.predictions
    pipe = transformers.pipeline("automatic-speech-recognition", str(tmp_path / "model"), device="cpu")
    assert isinstance(pipe(np.zeros(16000, np.float32))["text"], str)


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        (["trainer=seq2seq"], "trainer", "doesn't train a CTC model: choose trainer=ctc"),
        (["model=digits_whisper"], "trainer", "doesn't train a sequence-to-sequence model: choose trainer=seq2seq"),
        (["trainer.args.predict_with_generate=true"], "trainer.args.predict_with_generate", "it belongs to trainer=seq2seq"),
        (
            ["trainer=seq2seq", "model=digits_whisper", "trainer.args.generation_num_beams=0"],
            "trainer.args.generation_num_beams",
            "at least 1",
        ),
        (
            ["trainer=seq2seq", "model=digits_whisper", "trainer.args.sortish_sampler=true"],
            "trainer.args.sortish_sampler",
            "batching group",
        ),
        (["trainer=seq2seq", "model=digits_whisper", "vocabulary.phoneme_language=en"], "vocabulary.phoneme_language", "leave it null"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, key, message):
    with pytest.raises(ConfigError) as refused:
        Pipeline.of(composed(*overrides))
    assert refused.value.key == key and message in refused.value.problem
