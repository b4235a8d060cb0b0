"""Shapes tried before the first step: all of them, the largest first, and no trace left."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import EVERY_ENGINE
from test_trainer import built

from asr import failures
from asr.errors import TrainingError
from asr.labels import Labels
from asr.planning import Shape
from asr.shape_trial import _labels, made_up

SHORT = [
    "trainer.args.max_steps=3",
    "trainer.args.per_device_train_batch_size=4",
    "trainer.args.per_device_eval_batch_size=3",
    "trainer.args.save_strategy=no",
    "batching.max_shapes=3",
]


def tried(made) -> list[tuple[str, bool, tuple[int, int]]]:
    """Return a list that gets phase, whether it only tries, and (rows, length) of every batch."""
    seen, count = [], made._count

    def watched(phase, facts, inputs):
        shape = count(phase, facts, inputs)
        seen.append((phase, made.trying, (shape.rows, shape.length)))
        return shape

    made._count = watched
    return seen


def test_every_planned_shape_is_tried_once_the_largest_first(tmp_path):
    made, _ = built(tmp_path, *SHORT, "trainer.try_shapes=true")
    seen = tried(made)
    made.train()
    plans = made.planned_shapes()
    assert len(plans["train"]) > 1
    expected = [
        (phase, True, (s.rows, s.length)) for phase in ("train", "eval") for s in sorted(plans[phase], key=lambda s: -s.rows * s.length)
    ]
    assert [entry for entry in seen if entry[1]] == expected == seen[: len(expected)]
    assert len(seen) == len(expected) + 3
    assert made.forwarded["train"].shapes != set()
    assert not made.forwarded["eval"].shapes
    assert len(made.bad_numbers._batches) == 0


@pytest.mark.parametrize("engine", EVERY_ENGINE)
def test_a_run_with_a_trial_is_the_run_without_it_bit_by_bit(tmp_path, engine):
    """With dropout, masks and a running statistic; the dice of Python, numpy and torch fall alike afterwards."""
    ended = []
    for on in ("true", "false"):
        options = ["model.mask_time_prob=0.2", "model.mask_time_length=2", f"trainer.try_shapes={on}", "trainer.args.logging_steps=1"]
        made, _ = built(tmp_path / on, *SHORT, *options, f"trainer.engine={engine}")
        made.model.register_buffer("running", torch.zeros(1))

        def average(model, *_):
            model.running.mul_(0.5).add_(random.random() + np.random.rand())

        made.model.register_forward_pre_hook(average)
        made.train()
        losses = [line["loss"] for line in made.state.log_history if "loss" in line]
        state = torch.cat([t.detach().flatten().double() for t in (*made.model.parameters(), *made.model.buffers())])
        of_optimizer = torch.cat([v.flatten().double() for s in made.optimizer.state.values() for v in s.values()])
        ended.append((losses, state, of_optimizer, torch.rand(1), random.random(), np.random.rand(), vars(made.forwarded["train"])))
    first, second = ended
    assert first[0] == second[0] and len(first[0]) == 3
    assert all(torch.equal(a, b) for a, b in zip(first[1:4], second[1:4], strict=True))
    assert first[4:] == second[4:]


def test_gradients_mode_and_counters_are_as_before(tmp_path):
    made, _ = built(tmp_path, *SHORT, "trainer.try_shapes=true")
    from asr import shape_trial

    made.get_train_dataloader()
    made.model.eval()
    weight = next(p for p in made.model.parameters() if p.requires_grad)
    gradient = weight.grad = torch.ones_like(weight)
    shape_trial.try_shapes(made, made.planned_shapes())
    assert not made.model.training
    assert weight.grad is gradient and torch.equal(gradient, torch.ones_like(weight))
    assert sum(p.grad is not None for p in made.model.parameters()) == 1
    assert (made.trying, made.latest) == (False, None)


def test_what_doesn_t_fit_fails_before_the_first_step_and_names_the_shape(tmp_path):
    """The allocator refuses for real: a forward of the second shape asks for a petabyte."""
    made, _ = built(tmp_path, *SHORT, "trainer.try_shapes=true")
    shapes = sorted(made.get_train_dataloader() and made.planned_shapes()["train"], key=lambda s: -s.rows * s.length)
    length, steps = shapes[1].length, []

    def greedy(_, __, kwargs):
        if kwargs["input_features"].shape[1] == length:
            torch.empty(2**50)

    made.model.register_forward_pre_hook(greedy, with_kwargs=True)
    made.training_step = lambda *a, **k: steps.append(a)
    with pytest.raises(TrainingError) as raised, failures.explained(made):
        made.train()
    said, shape = str(raised.value), shapes[1]
    assert steps == []
    assert f"a training batch of {shape.rows} rows of " in said
    assert f"with up to {shape.labels} labels, as it was tried before the first step. Lower " in said
    assert "trainer.args.per_device_train_batch_size (4; trainer.args.gradient_accumulation_steps makes up for it)" in said
    assert "batching.reference_seconds or batching.max_batch_size" in said
    assert "can't allocate memory" in said


def test_a_batch_that_is_made_up_is_as_the_loader_s_and_ctc_can_spell_it(tmp_path):
    made, _ = built(tmp_path, *SHORT)
    real = next(iter(made.get_train_dataloader()))
    facts, shape = real["facts"], Shape(real["input_features"].shape[1], real["labels"].shape[1], real["labels"].shape[0])
    ours = made_up(made, "train", shape)
    assert {name: (value.shape, value.dtype) for name, value in ours.items() if name != "facts"} == {
        name: (value.shape, value.dtype) for name, value in real.items() if name != "facts"
    }
    assert len(ours["facts"].rows) == len(facts.rows) and all(ours["facts"].real)
    made.current_gradient_accumulation_steps = 1
    assert torch.isfinite(made.compute_loss(made.model, ours))


def test_labels_fit_into_the_frames():
    model = SimpleNamespace(_get_feat_extract_output_lengths=lambda lengths: lengths // 10)
    two, one = Labels.of([[5, 5, 7]]), Labels.of([[5]])
    assert _labels(two, Shape(100, 6, 2), model) == [5, 7, 5, 7, 5, 7]
    assert len(_labels(two, Shape(100, 60, 2), model)) == 10
    assert _labels(one, Shape(100, 60, 2), model) == [5] * 5  # a blank stands between two that are equal
    assert len(_labels(one, Shape(100, 60, 2), object())) == 60
