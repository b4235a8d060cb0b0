"""Losses and gradients made bad for real: by a file of absurd samples, a learning rate, a weight, a hook."""

import json
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from conftest import EVERY_ENGINE
from safetensors.torch import load_file
from test_trainer import built

from asr import audio, bad_numbers
from asr.bad_numbers import BadNumbers, Step
from asr.batching import FILLER
from asr.errors import TrainingError

SHORT = [
    "trainer.args.max_steps=8",
    "trainer.args.per_device_train_batch_size=3",
    "trainer.args.logging_steps=4",
    "trainer.args.warmup_steps=0",
    "trainer.args.save_strategy=no",
]


@pytest.fixture
def poison(tmp_path, monkeypatch):
    """Return a function that gives one utterance a wav of samples that are finite, and whose sum isn't; audio would refuse it."""
    monkeypatch.setattr(audio, "LOUDEST", math.inf)
    path = tmp_path / "loud.wav"
    soundfile.write(path, (np.random.default_rng(0).uniform(-1, 1, 16000) * 1e38).astype(np.float32), 16000, subtype="FLOAT")
    return lambda rows: (*rows[:5], *(replace(u, audio=path, seconds=1.0, start_seconds=None) for u in rows[5:6]), *rows[6:])


def seen_by(made) -> list[tuple[list[str], dict[str, torch.Tensor]]]:
    """Return a list that gets the ids and tensors of every training batch."""
    seen, compute_loss = [], made.compute_loss

    def watched(model, inputs, *args, **kwargs):
        ids = [made.train_dataset.utterances[row].id for row in inputs["facts"].rows if row != FILLER]
        seen.append((ids, {name: value.clone() for name, value in inputs.items() if name != "facts"}))
        return compute_loss(model, inputs, *args, **kwargs)

    made.compute_loss = watched
    return seen


def weights(made) -> torch.Tensor:
    return torch.cat([t.detach().flatten().double() for t in (*made.model.parameters(), *made.model.buffers())])


@pytest.mark.parametrize("engine", EVERY_ENGINE)
def test_stop_names_step_and_utterances_saves_the_batch_and_leaves_the_weights(tmp_path, poison, engine):
    options = [f"trainer.engine={engine}", "trainer.args.logging_steps=100", "model.mask_time_prob=0.2", "model.mask_time_length=2"]
    made, _ = built(tmp_path / "run", *SHORT, *options, utterances=poison)
    bad_id, seen, before = made.train_dataset.utterances[5].id, seen_by(made), []
    step_of = type(made).training_step
    made.training_step = lambda *a, **k: (before.append(weights(made)), step_of(made, *a, **k))[1]
    with pytest.raises(TrainingError) as raised:
        made.train()
    ids, tensors = seen[-1]
    said, kept = str(raised.value), tmp_path / "run" / "bad_batches"
    assert bad_id in ids
    assert f"step {len(seen)}: the loss is nan. Utterances of its batch: {', '.join(ids)}; saved for inspection as {kept}" in said
    for mend in (
        f"trainer.args.learning_rate ({made.args.learning_rate:g})",
        "trainer.args.max_grad_norm (1)",
        "trainer.on_nan=skip",
        "No checkpoint was saved",
    ):
        assert mend in said
    assert made.args.logging_nan_inf_filter is False
    torch.testing.assert_close(weights(made), before[-1], rtol=0, atol=0)
    assert math.isfinite(weights(made).sum())
    saved = load_file(kept / f"step-{len(seen)}-rank-0.safetensors")
    assert saved.keys() == tensors.keys()
    assert "mask_time_indices" in saved
    assert all(torch.equal(saved[name].nan_to_num(7.0), tensors[name].nan_to_num(7.0)) for name in saved if saved[name].is_floating_point())
    assert all(torch.equal(saved[name], tensors[name]) for name in saved if not saved[name].is_floating_point())
    facts = json.loads((kept / f"step-{len(seen)}-rank-0.json").read_text())
    assert (facts["step"], facts["loss"], facts["what"]) == (len(seen), "nan", "the loss is nan")
    row = next(u for u in facts["utterances"] if u["id"] == bad_id)
    assert (row["largest_input"], row["seconds"], row["transcript"]) == ("nan", 1.0, made.train_dataset.utterances[5].text)


@pytest.mark.parametrize("engine", EVERY_ENGINE)
def test_skip_moves_nothing_counts_the_step_and_keeps_its_loss_out_of_the_mean(tmp_path, poison, engine, caplog):
    caplog.set_level(logging.WARNING)
    made, _ = built(tmp_path / "run", *SHORT, f"trainer.engine={engine}", "trainer.on_nan=skip", utterances=poison)
    losses, states, optimizers = [], [], []
    watch = made.bad_numbers.watch
    made.bad_numbers.watch = lambda loss, *args: (losses.append(loss.item()), watch(loss, *args))[1]

    def note(*_, **__):
        states.append(weights(made))
        optimizers.append(torch.cat([v.flatten().double() for s in made.optimizer.state.values() for v in s.values()] or [torch.zeros(1)]))

    zero_grad = made.model.zero_grad
    made.model.zero_grad = lambda *a, **k: (note(), zero_grad(*a, **k))[1]  # after each optimizer step
    done = made.train()
    bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    assert len(losses) == 8 and len(bad) == 1
    assert states[0].numel() and len(states) == 9  # the loop's own zeroing comes first
    step = bad[0]
    for kept in (states, optimizers):
        if step or kept is states:
            torch.testing.assert_close(kept[step + 1], kept[step], rtol=0, atol=0)
    assert not torch.equal(states[(step + 1) % 8], states[(step + 1) % 8 + 1])
    logged = [line["loss"] for line in made.state.log_history if "loss" in line]
    for logged_loss, part in zip(logged, (losses[:4], losses[4:]), strict=True):
        assert logged_loss == pytest.approx(np.mean([loss for loss in part if math.isfinite(loss)]), abs=2e-4)
    assert done.metrics["num_train_steps_skipped"] == 1
    assert done.metrics["train_loss"] == pytest.approx(np.mean([loss for loss in losses if math.isfinite(loss)]), rel=1e-4)
    assert f"step {step + 1}: the loss is nan" in caplog.text
    assert "left out (trainer.on_nan=skip), 1 so far" in caplog.text
    assert len(list((tmp_path / "run" / "bad_batches").iterdir())) == 2


def test_a_gradient_alone_is_found_and_what_running_statistics_took_in_is_put_back(tmp_path):
    """The loss is finite: a hook makes the gradient of one weight infinite, and the forward has already moved a buffer."""
    made, _ = built(tmp_path, *SHORT, "trainer.args.max_steps=2", "trainer.on_nan=skip")
    made.model.register_buffer("running", torch.zeros(1))

    def count(*_):
        made.model.running.add_(1.0)

    made.model.register_forward_hook(count)
    made.model.lm_head.bias.register_hook(lambda g: torch.full_like(g, math.inf) if made.state.global_step == 0 else g)
    made.train()
    assert made.bad_numbers.steps_skipped == 1
    assert made.model.running.item() == 1.0
    facts = json.loads((tmp_path / "bad_batches" / "step-1-rank-0.json").read_text())
    assert facts["what"].startswith("the gradients' norm is ")
    assert math.isfinite(facts["loss"])


@pytest.mark.parametrize("save_steps", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_a_learning_rate_that_explodes_never_leaves_a_bad_checkpoint(tmp_path, save_steps):
    wild = ["trainer.args.learning_rate=1e30", "trainer.args.save_strategy=steps", f"trainer.args.save_steps={save_steps}"]
    made, _ = built(tmp_path, *SHORT, *wild)
    with pytest.raises(TrainingError, match=r"step 1: the weights' norm is inf" if save_steps == 1 else r"step 2: the loss is (nan|inf)"):
        made.train()
    assert list((tmp_path / "checkpoints").glob("checkpoint-*")) == []


@pytest.mark.slow
def test_skipping_gives_up_when_nothing_is_learnt_any_more(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_numbers, "MOST_IN_A_ROW", 3)
    made, _ = built(tmp_path, *SHORT, "trainer.on_nan=skip")
    torch.nn.init.constant_(made.model.lm_head.weight, math.nan)
    with pytest.raises(
        TrainingError, match=r"3 steps in a row were left out, so nothing is learnt any more\. The last: step 3: the loss is nan"
    ):
        made.train()


@pytest.mark.slow
def test_a_run_whose_every_step_was_left_out_is_no_finished_run(tmp_path):
    made, _ = built(tmp_path, *SHORT, "trainer.on_nan=skip")
    torch.nn.init.constant_(made.model.lm_head.weight, math.nan)
    with pytest.raises(TrainingError, match="all 8 steps were left out"):
        made.train()
    assert not any("loss" in line for line in made.state.log_history)


@pytest.mark.slow
def test_accumulated_batches_are_told_apart_and_ten_are_kept(tmp_path, poison, monkeypatch):
    made, _ = built(tmp_path / "run", *SHORT, "trainer.args.gradient_accumulation_steps=4", utterances=poison)
    seen = seen_by(made)
    folder = tmp_path / "run" / "bad_batches"
    folder.mkdir(parents=True)
    for i in range(bad_numbers.MOST_KEPT - 1):
        (folder / f"of-before-{i}.json").touch()
    bad_id = made.train_dataset.utterances[5].id
    with pytest.raises(TrainingError) as raised:
        made.train()
    step = -(-len(seen) // 4)
    place = next(i for i, (ids, _) in enumerate(seen[4 * step - 4 :]) if bad_id in ids)
    kept = [path.name for path in folder.glob("step-*.safetensors")]
    assert kept == [f"step-{step}-rank-0-batch-{place}.safetensors"]
    assert all(name in str(raised.value) for name in seen[4 * step - 4 + place][0])
    assert not any(name in str(raised.value) for name in seen[4 * step - 4 + (place + 1) % 4][0])
    (folder / kept[0]).unlink()
    made, _ = built(tmp_path / "run", *SHORT, utterances=poison)
    with pytest.raises(TrainingError) as raised:
        made.train()
    assert "saved for inspection" not in str(raised.value)
    assert list(folder.glob("step-*.safetensors")) == []


@pytest.mark.slow
def test_a_batch_that_can_t_be_saved_doesn_t_hide_what_went_bad(tmp_path, poison):
    made, _ = built(tmp_path / "run", *SHORT, utterances=poison)
    (tmp_path / "run" / "bad_batches").write_text("in the way")
    with pytest.raises(TrainingError, match=r"the loss is nan\..*rank-0\.safetensors can't be written: .*File exists"):
        made.train()


class _Agreement:
    """What one rank of several is told: fixed answers."""

    def __init__(self, sums, others):
        self.answer, self.others = sums, others

    def sums(self, counts):
        return [self.answer + counts[0]]

    def gathered(self, said):
        return [said, self.others(said)]


def test_on_a_device_numbers_are_read_late_and_the_first_bad_step_is_named(tmp_path, monkeypatch):
    """Nothing is asked of the device until a step logs; then the earliest step counts, whatever came after it."""
    made, _ = built(tmp_path)
    watching = BadNumbers(made, "stop", made.bad_numbers.agreement)
    monkeypatch.setattr(made.args.__class__, "device", torch.device("meta"))
    asked = []
    monkeypatch.setattr(bad_numbers, "_numbers", lambda steps: asked.append(len(steps)) or [(s, [math.nan], math.nan) for s in steps[2:]])
    from asr.collate import BatchFacts
    from asr.planning import Shape

    for step in range(5):
        made.state.global_step = step
        watching.watch(torch.tensor(0.0), BatchFacts((step,), (1,), (1,), (1.0,)), Shape(100, 40, 1))
        watching.before_step()
        watching.at_step_end(torch.tensor(0.0), reads=False)
    assert asked == []
    with pytest.raises(TrainingError, match=f"step 3: the loss is nan. Utterances of its batch: {made.train_dataset.utterances[2].id}; "):
        watching.at_step_end(torch.tensor(0.0), reads=True)
    assert asked == [5]


def test_a_rank_that_is_innocent_names_the_one_that_isn_t(tmp_path, monkeypatch):
    """With DDP both have a gradient that is NaN, and one the loss."""
    made, _ = built(tmp_path)
    monkeypatch.setattr(made.args, "_n_gpu", 0, raising=False)
    theirs = bad_numbers.BadBatch(
        1, 1, "the loss is inf", ("their utterance",), True, tmp_path / "bad_batches" / "step-1-rank-1.safetensors"
    )
    monkeypatch.setattr(type(made.args), "world_size", 2)
    watching = BadNumbers(made, "stop", _Agreement(1, lambda said: (0, [theirs]) if isinstance(said, tuple) else []))
    from asr.collate import BatchFacts
    from asr.planning import Shape

    watching.watch(torch.tensor(1.0), BatchFacts((3,), (1,), (1,), (1.0,)), Shape(100, 40, 1))
    made.model.lm_head.bias.grad = torch.full_like(made.model.lm_head.bias, math.nan)
    with pytest.raises(
        TrainingError, match=r"step 1: the loss is inf \(rank 1\). Utterances of its batch: their utterance; saved .*rank-1"
    ):
        watching.before_step()
    assert not (tmp_path / "bad_batches").exists()


def test_what_a_resumed_training_takes_up(tmp_path):
    made, _ = built(tmp_path)
    first, second = (BadNumbers(made, "skip", made.bad_numbers.agreement) for _ in range(2))
    first.steps_skipped, first._unlogged, first._unlogged_skipped = 3, 4, 1
    first.at_step_end(torch.tensor(2.5), reads=False)
    second.restore(json.loads(json.dumps(first.progress())))
    assert second.progress() == first.progress()
    total, second._stepped, second._left_out = torch.tensor(math.nan), True, True
    second.at_step_end(total, reads=False)
    assert total.item() == 2.5
    logs = {"loss": 1.0, "grad_norm": math.nan}
    second.correct(logs)
    assert logs == {"loss": round(5 / 3, 4)}


def test_steps_are_read_at_once():
    step = Step(1, (), torch.tensor(2.0))
    assert bad_numbers._numbers([step, Step(2, (), None)]) == [(step, [], 2.0), (Step(2, (), None), [], None)]
