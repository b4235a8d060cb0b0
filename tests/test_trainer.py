"""The mixed trainer on a real model and corpus: what batch size, padding and accumulation may not change."""

import pytest
import torch
from conftest import TINY, composed

from asr import manifest, metrics, trainer
from asr.collate import CTCCollator, UtteranceDataset
from asr.errors import ConfigError, DataError
from asr.experiment import Pipeline


def built(tmp_path, *overrides, model="wav2vec2_bert_tiny", split="validation"):
    """Return a trainer over the small corpus, with its scorer, as asr.experiment.work builds it."""
    import transformers

    pipeline = Pipeline.of(composed(f"model={model}", f"dataset.eval_split={split}", "trainer.args.report_to=none", *TINY, *overrides))
    transformers.set_seed(pipeline.seed)
    tables = {role: manifest.build(pipeline.dataset, s, limit=None, normalise=pipeline.text) for role, s in pipeline.splits.items()}
    references = {role: [pipeline.text(u.text) for u in t.utterances] for role, t in tables.items()}
    tmp_path.mkdir(exist_ok=True)
    tokenizer = pipeline.vocabulary.tokenizer_from(pipeline.vocabulary.build([r for rs in references.values() for r in rs]), tmp_path)
    net = pipeline.model.load(tokenizer, new_head=True)
    processor = pipeline.model.processor(tokenizer, net)
    data = {
        role: UtteranceDataset(
            t.utterances, [pipeline.vocabulary.encode(tokenizer, r) for r in references[role]], processor.feature_extractor
        )
        for role, t in tables.items()
    }
    scorer = metrics.Scorer(tables["eval"].utterances, references["eval"], tokenizer, pipeline.text)
    made = pipeline.trainer.build(
        model=net, processor=processor, data_collator=CTCCollator.for_extractor(processor.feature_extractor),
        train_dataset=data["train"], eval_dataset=data["eval"], compute_metrics=scorer, gaudi_config=pipeline.gaudi_config,
        topology=pipeline.topology, seed=pipeline.seed, run_dir=tmp_path,
    )  # fmt: skip
    return made, scorer


def test_the_class_is_the_real_gaudi_trainer_under_our_mixin(tmp_path):
    made, _ = built(tmp_path)
    assert trainer.class_path(made) == "optimum.habana.transformers.trainer.GaudiTrainer"
    assert type(made).__name__ == "SpeechGaudiTrainer"


@pytest.mark.parametrize("model", ["wav2vec2_bert_tiny", "wav2vec2_tiny"])
def test_evaluation_is_the_same_at_batch_size_1_and_16(tmp_path, model):
    results = []
    for size in (1, 3, 16):
        made, scorer = built(tmp_path / str(size), f"trainer.args.per_device_eval_batch_size={size}", model=model, split="test")
        measured = made.evaluate()
        results.append((scorer.predictions, measured["eval_wer"], measured["eval_loss"]))
    assert any(line["hypothesis"] for line in results[0][0])  # untrained, but not silent
    for predictions, wer, loss in results[1:]:
        assert predictions == results[0][0]
        assert wer == results[0][1]
        assert loss == pytest.approx(results[0][2], rel=1e-3)


def test_eval_loss_is_the_mean_over_utterances(tmp_path):
    """10 utterances in batches of 4: GaudiTrainer alone would weigh the last two as much as four (trainer.py:2133)."""
    made, _ = built(tmp_path, "trainer.args.per_device_eval_batch_size=4", split="test")
    losses = []
    for row in made.eval_dataset:
        batch = dict(made.data_collator([row]))
        batch.pop("facts")
        with torch.no_grad():
            losses.append(made.model.eval()(**batch).loss.item())
    assert len(losses) == 10
    assert made.evaluate()["eval_loss"] == pytest.approx(sum(losses) / 10, rel=1e-3)


def test_accumulated_batches_train_like_one_large_batch(tmp_path):
    """optimum-habana 1.21.2 doesn't divide by the accumulation steps on this path; we do, once."""
    steps = [
        "trainer.args.max_steps=2",
        "trainer.args.learning_rate=1e-2",
        "trainer.args.warmup_ratio=0",
        "trainer.args.optim=sgd",
        "trainer.args.save_strategy=no",
    ]
    steps += ["model.architecture.conformer_conv_dropout=0.0"]  # no dice, so that only the arithmetic can differ
    weights, logged = [], []
    for size, accumulation in ((8, 1), (4, 2)):
        made, _ = built(
            tmp_path / str(size),
            *steps,
            f"trainer.args.per_device_train_batch_size={size}",
            f"trainer.args.gradient_accumulation_steps={accumulation}",
        )
        rows = list(range(8))
        halves = [rows[i : i + size] for i in range(0, 8, size)]
        made.get_train_dataloader = lambda made=made, halves=halves: made._loader(made.train_dataset, halves * 2)
        logged.append(made.train().training_loss)
        weights.append(torch.cat([p.detach().flatten() for p in made.model.parameters()]))
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)


def test_training_sees_every_utterance_once_an_epoch_and_reshuffles(tmp_path):
    made, _ = built(
        tmp_path, "trainer.args.num_train_epochs=2", "trainer.args.per_device_train_batch_size=5", "trainer.args.save_strategy=no"
    )
    drawn = []
    collate = made.data_collator.__class__.__call__
    made.data_collator = type(
        "Spy",
        (),
        {"input_name": "input_features", "__call__": lambda self, rows: drawn.append([r.number for r in rows]) or collate(spied, rows)},
    )()
    spied = CTCCollator("input_features", 0.0, True)
    made.train()
    epochs = drawn[:5], drawn[5:]
    assert [sorted(i for batch in epoch for i in batch) for epoch in epochs] == [list(range(24))] * 2
    assert epochs[0] != epochs[1]


def test_an_epoch_without_a_batch_is_bad_data_not_a_finished_run(tmp_path):
    made, _ = built(tmp_path, "trainer.args.dataloader_drop_last=true", "trainer.args.per_device_train_batch_size=64")
    with pytest.raises(DataError, match="24 utterances make no full batch of 64"):
        made.train()


def test_a_batch_size_that_was_found_is_the_loader_s(tmp_path):
    made, _ = built(tmp_path)
    made._train_batch_size = 4  # what auto_find_batch_size does after running out of memory
    assert {len(batch) for batch in made.get_train_dataloader().batch_sampler} == {4}


def test_what_went_through_forward_is_counted(tmp_path):
    made, _ = built(tmp_path, "trainer.args.max_steps=3", "trainer.args.per_device_train_batch_size=8", "trainer.args.save_strategy=no")
    made.train()
    seen = made.forwarded["train"]
    seconds = sum(u.seconds for u in made.train_dataset.utterances)
    assert seen.audio_seconds == pytest.approx(seconds)  # 3 batches of 8 are the 24 utterances
    assert 0.5 < seen.padding_efficiency <= 1
    assert len(seen.shapes) == 3


def test_workers_change_nothing(tmp_path):
    losses = []
    for workers in (0, 2):
        made, _ = built(
            tmp_path / str(workers),
            "trainer.args.max_steps=3",
            f"trainer.args.dataloader_num_workers={workers}",
            "trainer.args.save_strategy=no",
        )
        losses.append(made.train().training_loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", sorted(trainer.ELSEWHERE))
def test_arguments_decided_elsewhere_say_where(name):
    with pytest.raises(ConfigError, match=rf"^args\.{name}: is not set here"):
        trainer.CTCTraining(args={name: None})


def test_ranges_and_refusals_name_real_arguments():
    assert set(trainer.RANGES) | set(trainer.ELSEWHERE) <= set(trainer.arguments())
