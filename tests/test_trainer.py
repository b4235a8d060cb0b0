"""The mixed trainer on a real model and corpus: what batch size, padding and accumulation may not change."""

import gc
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from conftest import INSTALLED_ENGINES, TINY, composed
from test_ctc_outputs import Kernel

from asr import ctc_outputs, engines, gaudi, manifest, metrics, trainer
from asr.batching import FILLER, Buckets, Slot
from asr.collate import Collator, UtteranceDataset
from asr.errors import DataError
from asr.labels import Labels
from asr.pipeline import Pipeline
from asr.planning import Shape
from asr.spec_augment import takes_masks


def built(tmp_path, *overrides, model="wav2vec2_bert_tiny", split="validation", on_bad="fail", utterances=lambda rows: rows):
    """Return a trainer over the small corpus, with its scorer, as asr.stages.work builds it."""
    import transformers

    quiet = ["trainer.args.report_to=none", "trainer.try_shapes=false"]
    pipeline = Pipeline.of(composed(f"model={model}", f"dataset.eval_split={split}", *quiet, *TINY, *overrides))
    transformers.set_seed(pipeline.seed)
    tables = {role: manifest.build(pipeline.dataset, s, limit=None, normalise=pipeline.text) for role, s in pipeline.splits.items()}
    references = {role: [pipeline.text(u.text) for u in t.utterances] for role, t in tables.items()}
    tmp_path.mkdir(exist_ok=True)
    tokenizer = pipeline.vocabulary.tokenizer_from(pipeline.vocabulary.build([r for rs in references.values() for r in rs]), tmp_path)
    net = takes_masks(pipeline.model.load(tokenizer, new_head=True))
    processor = pipeline.model.processor(tokenizer, net)
    extractor = processor.feature_extractor
    data = {
        role: UtteranceDataset(
            utterances(t.utterances),
            Labels.of(pipeline.vocabulary.encode(tokenizer, r) for r in references[role]),
            extractor,
            on_bad=on_bad,
        )
        for role, t in tables.items()
    }
    scorer = metrics.Scorer(tables["eval"].utterances, references["eval"], ctc_outputs.decoder(tokenizer), pipeline.text)
    made = pipeline.trainer.build(
        model=net, processor=processor, data_collator=Collator.for_extractor(extractor).with_masks_for(net, pipeline.seed),
        train_dataset=data["train"], eval_dataset=data["eval"], compute_metrics=scorer, gaudi_config=pipeline.gaudi_config,
        batching=pipeline.batching, topology=pipeline.topology, seed=pipeline.seed, run_dir=tmp_path,
    )  # fmt: skip
    return made, scorer


def spied_on(made):
    """Return a list that gets the rows of every batch that the trainer's collator makes."""
    drawn = []

    class Spy(Collator):
        def __call__(self, rows):
            drawn.append([r.number for r in rows])
            return super().__call__(rows)

    made.data_collator = Spy(**vars(made.data_collator))
    return drawn


@pytest.mark.optimum_habana
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
    for number in range(len(made.eval_dataset)):
        batch = dict(made.data_collator([made.eval_dataset[number]]))
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
        "trainer.args.warmup_steps=0",
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
        made.get_train_dataloader = lambda made=made, halves=halves: made._loader(made.train_dataset, halves * 2, made.data_collator)
        logged.append(made.train().training_loss)
        weights.append(torch.cat([p.detach().flatten() for p in made.model.parameters()]))
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batching", ["buckets", "fixed batching.seconds=4", "longest"])
def test_training_sees_every_utterance_once_an_epoch_and_reshuffles(tmp_path, batching):
    made, _ = built(
        tmp_path,
        *f"batching={batching}".split(),
        "trainer.args.num_train_epochs=2",
        "trainer.args.per_device_train_batch_size=5",
        "trainer.args.save_strategy=no",
    )
    drawn = spied_on(made)
    made.train()
    half = len(drawn) // 2
    epochs = drawn[:half], drawn[half:]
    assert [sorted(i for batch in epoch for i in batch if i >= 0) for epoch in epochs] == [list(range(24))] * 2
    assert epochs[0] != epochs[1]


def test_an_epoch_without_a_batch_is_bad_data_not_a_finished_run(tmp_path):
    drop = ["batching=longest", "trainer.args.dataloader_drop_last=true"]
    made, _ = built(tmp_path, *drop, "trainer.args.per_device_train_batch_size=64")
    with pytest.raises(DataError, match="24 utterances make no full batch of 64"):
        made.train()


def test_a_batch_size_that_was_found_is_the_loader_s(tmp_path):
    made, _ = built(tmp_path, "batching=fixed")
    made._train_batch_size = 4  # what auto_find_batch_size does after running out of memory
    assert {len(batch) for batch in made.get_train_dataloader().batch_sampler} == {4}


def test_what_went_through_forward_is_counted(tmp_path):
    made, _ = built(
        tmp_path, "trainer.args.num_train_epochs=1", "trainer.args.per_device_train_batch_size=8", "trainer.args.save_strategy=no"
    )
    shapes = set()
    made.model.register_forward_pre_hook(lambda _, __, kwargs: shapes.add(tuple(kwargs["input_features"].shape)), with_kwargs=True)
    plan = made.get_train_dataloader().batch_sampler.plan
    made.train()
    seen = made.forwarded["train"]
    seconds = sum(u.seconds for u in made.train_dataset.utterances)
    assert seen.audio_seconds == pytest.approx(seconds)
    assert {shape[:3] for shape in seen.shapes} == shapes
    assert {(s.length, s.labels, s.rows) for s in plan.shapes} == {(length, labels, rows) for rows, length, _, _, labels in seen.shapes}
    assert seen.padding_efficiency == pytest.approx(plan.padding_efficiency)
    described = seen.describe()
    assert {(row["length"], row["labels"], row["rows"]): row["batches"] for row in described} == {
        tuple(shape): number for shape, number in zip(plan.shapes, plan.num_batches, strict=True)
    }
    real = sum(row["padding_efficiency"] * row["batches"] * row["rows"] * row["length"] for row in described)
    assert real / seen.padded == pytest.approx(plan.padding_efficiency, abs=1e-3)
    twice = trainer.Forwarded.of([seen, trainer.Forwarded.from_json(json.loads(json.dumps(seen.to_json())))]).describe()
    assert twice == [{**row, "batches": 2 * row["batches"]} for row in described]


@pytest.mark.parametrize(("batching", "num_shapes"), [("fixed batching.seconds=4", 1), ("buckets batching.max_shapes=2", 2)])
def test_shapes_are_few_in_training_and_in_evaluation(tmp_path, batching, num_shapes):
    made, scorer = built(
        tmp_path, *f"batching={batching}".split(), "trainer.args.max_steps=8", "trainer.args.save_strategy=no", split="test"
    )
    made.train()
    made.evaluate()
    assert len(made.forwarded["train"].shapes) == len(made.forwarded["eval"].shapes) == num_shapes
    assert len(scorer.predictions) == 10


def test_an_evaluation_keeps_no_tensor_of_a_batch(tmp_path):
    """Bytes in tensors are the same after the third batch and after the last but one: what is kept is text."""
    import transformers

    batches = ["batching=fixed", "batching.seconds=4", "trainer.args.per_device_eval_batch_size=1"]
    made, scorer = built(tmp_path, *batches, split="test")
    held = []

    class Weigh(transformers.TrainerCallback):
        def on_prediction_step(self, *_, **__):
            held.append(sum(t.numel() * t.element_size() for t in gc.get_objects() if type(t) is torch.Tensor))

    made.add_callback(Weigh())
    made.evaluate()
    assert len(held) == len(scorer.predictions) == 10
    assert held[8] == held[2] > 0


def test_batching_never_changes_an_evaluation(tmp_path):
    results = []
    for batching in ("longest", "buckets", "fixed batching.seconds=4"):
        made, scorer = built(
            tmp_path / batching, *f"batching={batching}".split(), "trainer.args.per_device_eval_batch_size=3", split="test"
        )
        results.append((scorer, made.evaluate()["eval_loss"]))
    for scorer, loss in results[1:]:
        assert scorer.predictions == results[0][0].predictions
        assert loss == pytest.approx(results[0][1], rel=1e-3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("model", ["wav2vec2_bert_tiny", "wav2vec2_tiny"])
def test_fillers_count_for_nothing_in_loss_and_gradient(tmp_path, model, reduction):
    made, _ = built(tmp_path, f"model.ctc_loss_reduction={reduction}", model=model)
    made.model.eval()  # no dropout
    length = int(made.train_dataset.sizes().lengths[:3].max())
    gradients, losses = [], []
    for rows in (3, 5):
        shape = Shape(length, 40, rows)
        slots = [Slot(i, shape, 0) if i < 3 else Slot(FILLER, shape, 0) for i in range(rows)]
        made.model.zero_grad()
        made.current_gradient_accumulation_steps = 1
        loss = made.compute_loss(made.model, made.data_collator([made.train_dataset[slot] for slot in slots]))
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in made.model.parameters() if p.requires_grad]))
    own = made.data_collator([made.train_dataset[Slot(i, Shape(length, 40, 3), 0)] for i in range(3)])
    own = {k: v for k, v in own.items() if k != "facts"}
    assert losses[0] == pytest.approx(made.model(**own).loss.item(), rel=1e-5)  # transformers' own loss
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


def test_a_batch_of_fillers_alone_has_a_zero_gradient(tmp_path):
    made, _ = built(tmp_path)
    made.current_gradient_accumulation_steps = 1
    loss = made.compute_loss(made.model, made.data_collator([made.train_dataset[Slot(FILLER, Shape(50, 10, 2), 0)]] * 2))
    loss.backward()
    assert loss.item() == 0.0
    assert all(not p.grad.any() for p in made.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("reduction", ["mean", pytest.param("sum", marks=pytest.mark.slow)])
def test_training_takes_the_device_s_kernel_and_evaluation_torch_s_loss(tmp_path, reduction, monkeypatch):
    kernel, results = Kernel(), []
    for its_own in (None, kernel):
        monkeypatch.setattr(type(engines.engine(INSTALLED_ENGINES[0])), "ctc_kernel", lambda *_, its_own=its_own: its_own)
        made, _ = built(
            tmp_path / str(len(results)),
            f"model.ctc_loss_reduction={reduction}",
            "trainer.args.max_steps=5",
            "trainer.args.save_strategy=no",
            "batching=fixed",
            "batching.seconds=4",
            "trainer.args.per_device_train_batch_size=5",
        )
        drawn = spied_on(made)
        results.append((made.train().training_loss, made.evaluate()["eval_loss"]))
        assert any(FILLER in rows for rows in drawn[:5])
    assert kernel.calls == 5
    assert results[1] == pytest.approx(results[0], rel=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_audio_that_can_t_be_decoded_becomes_a_filler_listed_and_counted(tmp_path, workers, caplog):
    nan, cut = tmp_path / "nan.wav", tmp_path / "cut.flac"
    soundfile.write(nan, np.full(16000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(cut, np.random.default_rng(0).uniform(-0.5, 0.5, 16000), 16000)
    cut.write_bytes(cut.read_bytes()[:9000])

    def with_bad(rows):
        return (replace(rows[0], audio=nan, seconds=1.0), replace(rows[1], audio=cut, seconds=1.0), *rows[2:])

    made, scorer = built(
        tmp_path / "run",
        "trainer.args.num_train_epochs=1",
        "trainer.args.save_strategy=no",
        f"trainer.args.dataloader_num_workers={workers}",
        split="test",
        on_bad="drop",
        utterances=with_bad,
    )
    plan = made.get_train_dataloader().batch_sampler.plan
    made.train()
    made.evaluate()
    ids = {phase: sorted(seen.bad) for phase, seen in made.forwarded.items()}
    assert ids == {
        "train": [u.id for u in made.train_dataset.utterances[:2]],
        "eval": [u.id for u in made.eval_dataset.utterances[:2]],
    }
    assert {shape[0] for shape in made.forwarded["train"].shapes} == {s.rows for s in plan.shapes}
    assert [line["id"] for line in scorer.predictions] == [u.id for u in made.eval_dataset.utterances[2:]]
    assert "nan.wav holds samples that are NaN" in caplog.text
    assert "cut.flac" in caplog.text


def test_nothing_decodable_to_evaluate_is_bad_data(tmp_path):
    made, _ = built(tmp_path, on_bad="drop", utterances=lambda rows: tuple(replace(u, audio=tmp_path / "gone.wav") for u in rows))
    with pytest.raises(DataError, match="no utterance of the evaluation could be decoded"):
        made.evaluate()


def test_bad_audio_stops_the_run_where_that_is_asked_for(tmp_path):
    made, _ = built(tmp_path, utterances=lambda rows: tuple(replace(u, audio=tmp_path / "gone.wav") for u in rows))
    with pytest.raises(DataError, match=r"gone\.wav is not there"):
        made.train()


def test_masks_are_drawn_for_training_only_and_reach_the_model(tmp_path):
    masked = ["model.mask_time_prob=0.3", "model.mask_time_length=2", "model.mask_feature_prob=0.2", "model.mask_feature_length=4"]
    made, _ = built(tmp_path, *masked, "trainer.args.max_steps=2", "trainer.args.save_strategy=no")
    given = {"train": [], "eval": []}

    def spy(model, _, kwargs):
        given["train" if model.training else "eval"].append({k: v for k, v in kwargs.items() if "mask_" in k and k != "attention_mask"})

    made.model.register_forward_pre_hook(spy, with_kwargs=True)
    made.train()
    made.evaluate()
    assert [set(masks) for masks in given["train"]] == [{"mask_time_indices", "mask_feature_indices"}] * 2
    assert all(mask.any() for masks in given["train"] for mask in masks.values())
    assert all(masks == {} for masks in given["eval"])


GAUDI_CLASSES = [
    pytest.param(f"optimum.habana.{name}", marks=pytest.mark.optimum_habana) for name in ("GaudiTrainer", "GaudiSeq2SeqTrainer")
]


@pytest.mark.parametrize("base", ["transformers.Trainer", *GAUDI_CLASSES])
def test_batches_work_in_every_trainer_class(tmp_path, base):
    """A speech encoder with a text decoder: the loss is the model's own, and rows without labels count for nothing in it."""
    import transformers
    from transformers import BartConfig, SpeechEncoderDecoderConfig, SpeechEncoderDecoderModel, Wav2Vec2Config

    made, _ = built(tmp_path, model="wav2vec2_tiny")
    encoder = Wav2Vec2Config(**made.model.config.to_dict())
    decoder = BartConfig(d_model=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=40, use_cache=False)
    config = SpeechEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    net = SpeechEncoderDecoderModel(config)
    net.accepts_loss_kwargs = False  # its forward hands **kwargs to the encoder
    options = {"output_dir": str(tmp_path), "max_steps": 3, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    options |= {"remove_unused_columns": False, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
    library, _, name = base.rpartition(".")
    if library == "transformers":
        args, more = transformers.TrainingArguments(**options), {"engine": engines.engine("transformers")}
    else:
        kind = "GaudiSeq2SeqTrainingArguments" if "Seq2Seq" in name else "GaudiTrainingArguments"
        habana = gaudi.optimum_habana()
        args = getattr(habana, kind)(**options, use_habana=False, use_lazy_mode=False)
        more = {"gaudi_config": habana.GaudiConfig(), "engine": engines.engine("gaudi")}
    cls = getattr(transformers if library == "transformers" else gaudi.optimum_habana(), name)
    ours = trainer.mixed_into(cls, trainer.SpeechTrainerMixin)(
        model=net, args=args, data_collator=made.data_collator, train_dataset=made.train_dataset, eval_dataset=made.eval_dataset,
        batching=Buckets(max_shapes=2), **more,
    )  # fmt: skip
    ours.train()
    assert "eval_loss" in ours.evaluate()
    assert trainer.class_path(ours).endswith(name)
    assert len(ours.forwarded["train"].shapes) == len(ours.forwarded["eval"].shapes) == 2


def test_resuming_goes_on_with_the_batch_after_the_checkpoint(tmp_path):
    """Also in the second epoch; what is skipped is neither decoded nor collated."""
    steps = ["trainer.args.max_steps=9", "trainer.args.save_strategy=steps", "trainer.args.save_steps=7", "batching.max_shapes=3"]
    steps += ["trainer.args.per_device_train_batch_size=5", "trainer.args.save_total_limit=null"]
    whole, _ = built(tmp_path, *steps)
    drawn = spied_on(whole)
    whole.train()
    again, _ = built(tmp_path, *steps)
    assert 7 > len(again.get_train_dataloader()) > 2  # so that the checkpoint lies within the second epoch
    resumed = spied_on(again)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-7"))
    assert resumed == drawn[7:]  # accelerate looks one batch ahead in both


def test_workers_change_nothing(tmp_path):
    losses = []
    for workers in (0, 2):
        made, _ = built(
            tmp_path / str(workers),
            "trainer.args.max_steps=3",
            f"trainer.args.dataloader_num_workers={workers}",
            "trainer.args.save_strategy=no",
            "model.mask_time_prob=0.2",
            "model.mask_time_length=2",
        )
        losses.append(made.train().training_loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("argument", "value"), [("prefetch_factor", 3), ("persistent_workers", True), ("multiprocessing_context", "fork")])
def test_the_loader_s_arguments_reach_it(tmp_path, argument, value):
    name = f"dataloader_{argument}"
    if name not in engines.engine(INSTALLED_ENGINES[-1]).argument_fields():
        pytest.skip(f"transformers 5 has {name}")
    made, _ = built(tmp_path, "trainer.args.dataloader_num_workers=1", f"trainer.args.{name}={value}")
    given = getattr(made.get_train_dataloader(), argument)
    assert getattr(given, "get_start_method", lambda: given)() == value
