"""Tests that need the stand-in device, which is the accelerator of its whole process: test_device.py runs this file in one of its own."""

import copy
import io
import itertools
import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from habana_frameworks.torch import core, hpu
from habana_frameworks.torch.hpex.normalization import FusedClipNorm
from habana_frameworks.torch.hpex.optimizers import FusedAdamW
from test_trainer import built
from torch import nn
from torch.nn import functional

from asr.batching import MOST_GRAPHS, Batches, Fixed, Slot
from asr.ctc_outputs import utterance_losses
from asr.planning import Shape
from asr.rehearsal import device, findings, graphs
from asr.rehearsal.recorder import STEP
from asr.rehearsal.verdict import Facts

HPU = torch.device("hpu")


@pytest.fixture(autouse=True)
def nothing_counted():
    core.mark_step()
    device.load().forget_counts()
    graphs.seen.captured.clear()
    graphs.seen.uncaptured.clear()
    graphs.seen.unfaithful.clear()
    with device.phase("here"):
        yield


def recorded() -> int:
    core.mark_step()
    return len(device.graphs("here"))


def inputs(rows=3, frames=20, seed=0):
    return torch.randn(rows, frames, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the device computes what the CPU computes

LINEAR = nn.Linear(20, 5)
CONVOLUTIONS = {
    "plain": nn.Conv1d(2, 4, 3, stride=2, padding=1),
    "grouped": nn.Conv1d(4, 4, 3, groups=2, bias=False),
    "transposed": nn.ConvTranspose1d(2, 3, 4, stride=2),
    "transposed, grouped": nn.ConvTranspose1d(4, 6, 3, groups=2),
    "two-dimensional": nn.Conv2d(2, 3, (3, 2)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_gradients_are_the_cpu_s(name):
    on_cpu = CONVOLUTIONS[name]
    on_hpu = copy.deepcopy(on_cpu).to(HPU)
    channels = on_cpu.in_channels
    data = torch.randn(2, channels, *([9, 7] if isinstance(on_cpu, nn.Conv2d) else [9]))
    results = []
    for module, place in ((on_cpu, "cpu"), (on_hpu, "hpu")):
        given = data.clone().to(place).requires_grad_()
        out = module(given)
        (out**2).sum().backward()
        assert out.device.type == place
        results.append([out, given.grad, *(p.grad for p in module.parameters())])
        module.zero_grad()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours)


OPS = {
    "matmul": lambda x: x @ x.T,
    "softmax": lambda x: x.log_softmax(-1),
    "norm": lambda x: functional.layer_norm(x, x.shape[-1:]),
    "views": lambda x: x.T[1:5].reshape(-1, 4).unfold(0, 3, 2),
    "in place": lambda x: x.clone().add_(1).mul_(x)[:, ::2].copy_(x[:, 1::2]),
    "sorting": lambda x: torch.cat(x.sort(-1)[:1] + x.topk(3)[:1], dim=-1),
    "attention": lambda x: functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
    "reductions": lambda x: torch.stack([x.sum(), x.mean(), x.std(), x.max()]),
    "dtypes": lambda x: x.to(torch.bfloat16).float() + x.double().float() + (x > 0).float(),
    "out": lambda x: torch.add(x, 1, out=torch.empty(0, device=x.device)),
    "empty": lambda x: x[:0].sum() + torch.zeros((), device=x.device),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(-1, 2)) * 2j).clone(),
    "negated view": lambda x: torch._neg_view(x)[1:] * 2,
    "conjugate": lambda x: torch.view_as_real(torch.fft.rfft(x).conj().resolve_conj()).clone(),
    "host number": lambda x: x * torch.tensor(3.0) + 2,
}


@pytest.mark.parametrize("name", OPS)
def test_an_op_gives_what_the_cpu_gives(name):
    torch.testing.assert_close(OPS[name](inputs().to(HPU)).cpu(), OPS[name](inputs()))


def test_ctc_loss_and_its_gradient_are_the_cpu_s():
    logits, labels = torch.randn(30, 2, 7), torch.tensor([[1, 2, 2, 3], [4, 5, 0, 0]])
    results = []
    for place in ("cpu", "hpu"):
        given = logits.clone().to(place).requires_grad_()
        loss = functional.ctc_loss(given.log_softmax(-1), labels.to(place), (30, 25), (4, 2), reduction="none")
        loss.sum().backward()
        results.append((loss.detach().cpu(), given.grad.cpu()))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("zeroes", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_utterance_losses_are_the_cpu_s_and_one_graph_whatever_the_lengths(zeroes, reduction):
    config, compared = SimpleNamespace(pad_token_id=0, ctc_loss_reduction=reduction, ctc_zero_infinity=zeroes), []
    for seed, frames, lengths in ((1, (30, 25), (4, 2)), (2, (28, 30), (3, 4)), (3, (3, 30), (4, 1))):  # four labels in three frames
        logits = torch.randn(2, 30, 7, generator=torch.Generator().manual_seed(seed))
        labels = torch.tensor([[1, 2, 2, 3], [4, 5, 1, 2]])
        for i, length in enumerate(lengths):
            labels[i, length:] = -100
        results = []
        for place in ("cpu", "hpu"):
            given = logits.clone().to(place).requires_grad_()
            losses = utterance_losses(given, labels.to(place), torch.tensor(frames), lengths, config)
            losses[1:].sum().backward()
            results.append((losses.detach(), given.grad))
            core.mark_step()
        compared.append(results)
    assert device.events("sync", "here") == {}
    assert recorded() == 1
    for on_cpu, on_hpu in compared:
        torch.testing.assert_close([each.cpu() for each in on_hpu], list(on_cpu), equal_nan=True)


def test_a_cpu_tensor_among_hpu_tensors_is_refused():
    with pytest.raises(RuntimeError, match="same device"):
        inputs().to(HPU) + inputs()


def test_weights_are_saved_and_come_back():
    module = nn.Linear(3, 2).to(HPU)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    assert again["weight"].device.type == "hpu"
    torch.testing.assert_close(again["weight"].cpu(), module.weight.detach().cpu())
    file.seek(0)
    assert torch.load(file, weights_only=True, map_location="cpu")["weight"].device.type == "cpu"


def test_memory_is_counted_and_given_back():
    before = hpu.memory_stats()["InUse"]
    held = torch.empty(1_000_000, device=HPU)
    assert hpu.memory_stats()["InUse"] - before >= held.numel() * 4
    assert hpu.memory_stats()["MaxInUse"] >= hpu.memory_stats()["InUse"]
    del held
    assert hpu.memory_stats()["InUse"] == before


def test_the_device_has_random_numbers_of_its_own():
    torch.manual_seed(1)
    hpu.random.manual_seed_all(5)
    host = torch.random.get_rng_state()
    drawn = [functional.dropout(torch.ones(50, device=HPU), 0.5), torch.randn(5, device=HPU), torch.randint(9, (5,), device=HPU)]
    assert torch.equal(torch.random.get_rng_state(), host)  # drawn on the device
    state = hpu.random.get_rng_state_all()
    after = torch.rand(4, device=HPU)
    hpu.random.set_rng_state_all(state)
    assert torch.equal(torch.rand(4, device=HPU).cpu(), after.cpu())
    hpu.random.manual_seed_all(5)
    torch.rand(3)  # the host's numbers are others
    again = [functional.dropout(torch.ones(50, device=HPU), 0.5), torch.randn(5, device=HPU), torch.randint(9, (5,), device=HPU)]
    assert all(torch.equal(ours.cpu(), theirs.cpu()) for ours, theirs in zip(drawn, again, strict=True))


def test_autocast_lowers_what_a_gaudi_lowers():
    data = inputs().to(HPU)
    with torch.autocast("hpu", dtype=torch.bfloat16):
        dtypes = {
            "linear": LINEAR.to(HPU)(data).dtype,
            "layer_norm": functional.layer_norm(data, (20,)).dtype,
            "exp": data.bfloat16().exp().dtype,
            "add": (data + data).dtype,
        }
    assert dtypes == {"linear": torch.bfloat16, "layer_norm": torch.bfloat16, "exp": torch.float32, "add": torch.float32}
    assert functional.layer_norm(data, (20,)).dtype == torch.float32
    LINEAR.to("cpu")


# ---------------------------------------------------------------- lazy graphs and host syncs


def test_the_same_ops_on_the_same_shape_are_one_graph():
    for seed in range(3):
        (inputs(seed=seed).to(HPU) * (seed + 0.5)).relu()  # a number's value makes no other graph
        core.mark_step()
    assert recorded() == 1
    inputs(frames=21).to(HPU).mul(2.0).relu()
    assert recorded() == 2
    inputs().to(HPU).mul(2.0).sigmoid()
    assert recorded() == 3
    inputs().to(HPU).double().mul(2.0).relu()
    assert recorded() == 4


def test_a_value_asked_for_ends_the_graph():
    data = inputs().to(HPU)
    for _ in range(2):
        total = data.mul(2).sum()
        assert total.item() == pytest.approx(2 * float(inputs().sum()), rel=1e-5)
        data.add(1).cpu()
        core.mark_step()
    assert recorded() == 2
    assert device.events("sync", "here") == {"aten::_local_scalar_dense": 2, "copy to the host": 2}
    assert device.events("sync", "elsewhere") == {}


def test_a_copy_to_the_device_is_no_sync():
    inputs().to(HPU)
    torch.tensor([True, False], device=HPU)
    assert device.events("sync", "here") == {}


def test_ops_whose_size_depends_on_data_are_noted():
    data = inputs().to(HPU)
    data[data > 0]
    data.nonzero()
    data[torch.tensor([0, 1], device=HPU)]
    assert set(device.events("dynamic", "here")) == {"aten::index", "aten::nonzero"}


def test_eager_mode_compiles_each_op_by_itself():
    device.load().set_lazy(False)
    try:
        for _ in range(2):
            inputs().to(HPU).mul(2.0).relu().exp()
        assert len(device.graphs("here")) == 3
    finally:
        device.load().set_lazy(True)


def test_a_graph_belongs_to_the_phase_of_its_first_op():
    data = inputs().to(HPU)
    data.mul(2.0)
    with device.phase("later"):
        data.relu()
        core.mark_step()
        data.relu()
        core.mark_step()
    assert (len(device.graphs("here")), len(device.graphs("later"))) == (1, 1)


# ---------------------------------------------------------------- HPU graphs


class Small(nn.Module):
    """A module with what is hard to capture: dropout, running statistics, an option, outputs by name."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, data, mask=None, scale=1.0):
        hidden = functional.dropout(self.norm(self.first(data)), 0.3, self.training)
        if mask is not None:
            hidden = hidden * mask
        return {"logits": self.last(hidden) * scale, "hidden": hidden}


def trained(module, batches, *, accumulate=1):
    """Train a few steps and return losses and weights."""
    hpu.random.manual_seed_all(3)
    optimizer = FusedAdamW(module.parameters(), lr=1e-2)
    clip, losses = FusedClipNorm(module.parameters(), 1.0), []
    for number, (data, mask) in enumerate(batches):
        loss = (module(data.to(HPU), mask=mask.to(HPU))["logits"] ** 2).mean()
        loss.backward()
        losses.append(loss.detach())
        if (number + 1) % accumulate == 0:
            clip.clip_norm(module.parameters())
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        core.mark_step()
    return [loss.item() for loss in losses], [p.detach().cpu().clone() for p in [*module.parameters(), *module.buffers()]]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_graphed_module_trains_as_it_does_without(accumulate):
    torch.manual_seed(0)
    plain = Small().to(HPU).train()
    graphed = hpu.ModuleCacher()(model=copy.deepcopy(plain), inplace=True)
    dice = torch.Generator().manual_seed(1)
    batches = [(inputs(rows, seed=i), (torch.rand(rows, 8, generator=dice) > 0.2).float()) for i, rows in enumerate([4, 6, 4, 6, 4, 6])]
    expected, found = trained(plain, batches, accumulate=accumulate), trained(graphed, batches, accumulate=accumulate)
    assert found[0] == expected[0]
    assert len(set(found[0])) == 6
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[1], expected[1], strict=True))
    captured = graphs.seen.of("training")
    assert [each.shapes[0] for each in captured] == [(4, 20), (6, 20)]
    assert all(each.forward_ops and each.backward_ops and not each.frozen for each in captured)
    assert graphs.seen.unfaithful == []


def test_an_option_of_another_value_is_another_graph():
    module = hpu.ModuleCacher()(model=Small().to(HPU).train())
    for scale in (1.0, 2.0, 1.0):
        module(inputs().to(HPU), scale=scale)["logits"].sum().backward()
    assert len(graphs.seen.of("training")) == 2


def test_shapes_past_the_last_graph_run_without_one():
    module = hpu.ModuleCacher(max_graphs=2)(model=Small().to(HPU).train())
    for rows in (2, 3, 4, 5, 4):
        module(inputs(rows).to(HPU))["logits"].sum().backward()
    assert len(graphs.seen.of("training")) == 2
    assert graphs.seen.without("training") == {((4, 20),): 2, ((5, 20),): 1}
    assert graphs.seen.without("inference") == {}


def test_an_unused_parameter_fails_as_autograd_says():
    module = Small()
    module.unused = nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        hpu.ModuleCacher()(model=module.to(HPU).train())(inputs().to(HPU))


def test_what_needs_no_gradient_runs_uncaptured_in_training_s_graphs():
    module = hpu.ModuleCacher()(model=Small().to(HPU).eval())
    with torch.no_grad():
        module(inputs().to(HPU))
    assert graphs.seen == graphs.Seen()


@pytest.mark.parametrize("most", [None, 1])
def test_a_module_wrapped_for_inference_gives_the_same(most):
    module = Small().to(HPU).eval()
    wrapped = hpu.wrap_in_hpu_graph(copy.deepcopy(module), max_graphs=most)
    with torch.no_grad():
        first = wrapped(inputs(4, seed=1).to(HPU))["logits"]
        for rows, seed in ((4, 2), (6, 3), (4, 4)):
            ours, theirs = (each(inputs(rows, seed=seed).to(HPU))["logits"].cpu() for each in (wrapped, module))
            assert torch.equal(ours, theirs)
        assert torch.equal(first.cpu(), module(inputs(4, seed=1).to(HPU))["logits"].cpu())  # a later replay left it alone
    assert len(graphs.seen.of("inference")) == (most or 2)


class Drawing(nn.Module):
    """Draws on the host in every forward, where `used` to some effect."""

    def __init__(self, draw, used=True):
        super().__init__()
        self.layer, self.draw, self.used = nn.Linear(20, 4), draw, used

    def forward(self, data):
        drawn = float(self.draw())
        return self.layer(data) * (drawn if self.used else 1.0)


DRAWS = {"random": random.random, "numpy.random": np.random.random, "torch's CPU generator": lambda: torch.rand([])}


@pytest.mark.parametrize("generator", DRAWS)
def test_numbers_drawn_on_the_host_are_frozen_and_that_is_seen(generator):
    module = hpu.ModuleCacher()(model=Drawing(DRAWS[generator]).to(HPU).train())
    given = {float(module(inputs().to(HPU)).sum()) for _ in range(4)}
    assert len(given) == 1
    (captured,) = graphs.seen.of("training")
    assert captured.frozen == (generator,)


HIDDEN = {
    "a generator of its own": lambda: np.random.default_rng().random(),
    "a counter": partial(next, itertools.count(1)),
    "torch's, another": partial(torch.rand, [], generator=torch.Generator()),
}


@pytest.mark.parametrize("draw", HIDDEN)
@pytest.mark.parametrize("graph", ["training", "inference"])
def test_whatever_else_python_decides_shows_in_the_first_replay(draw, graph):
    module = Drawing(HIDDEN[draw]).to(HPU).train(graph == "training")
    module = hpu.ModuleCacher()(model=module) if graph == "training" else hpu.wrap_in_hpu_graph(module)
    with torch.set_grad_enabled(graph == "training"):
        for seed in range(3):
            module(inputs(seed=seed).to(HPU))
    assert graphs.seen.unfaithful == [(graph, ((3, 20),))]
    (failure,) = findings.what_graphs_do_wrong(graph)
    assert "[3, 20]" in failure and "decides or counts in Python" in failure


def test_a_branch_on_data_shows_in_the_first_replay():
    class Branching(nn.Module):
        def forward(self, data):
            return data * 2 if data.sum() > 0 else data

    module = hpu.wrap_in_hpu_graph(Branching().eval())
    with torch.no_grad():
        assert torch.equal(module(torch.ones(3, device=HPU)).cpu(), 2 * torch.ones(3))
        module(torch.zeros(3, device=HPU) - 1)
    assert graphs.seen.unfaithful == [("inference", ((3,),))]


def test_what_is_no_number_equals_what_is_none():
    class Dividing(nn.Module):
        def forward(self, data):
            return {"ratio": data / data, "small": data < 1}

    module = hpu.wrap_in_hpu_graph(Dividing().eval())
    with torch.no_grad():
        for _ in range(3):
            assert module(torch.zeros(3, device=HPU))["ratio"].cpu().isnan().all()
    assert graphs.seen.unfaithful == []


def test_numbers_drawn_to_no_effect_are_no_fault():
    module = hpu.ModuleCacher()(model=Drawing(np.random.random, used=False).to(HPU).train())
    np.random.seed(1)
    module(inputs().to(HPU)).sum().backward()
    assert graphs.seen.of("training")[0].frozen == ()
    assert np.random.random() == np.random.RandomState(1).random(2)[1]  # drawn once, as the program asked


def test_a_sync_and_a_mask_within_a_capture_are_noted():
    class Asking(nn.Module):
        def forward(self, data):
            kept = torch.where(data > 0, data, 0.0)
            kept[data > 1] = 0.5
            return kept if kept.sum() > 0 else data

    module = hpu.wrap_in_hpu_graph(Asking().eval())
    with torch.no_grad():
        module(inputs().to(HPU))
    assert device.events("sync_in_capture", "here") == {"aten::is_nonzero": 1} or device.events("sync_in_capture", "here") == {
        "aten::_local_scalar_dense": 1
    }
    assert device.events("dynamic_in_capture", "here").total() == 1


def test_a_raw_graph_replays_on_its_own_tensors():
    place = inputs(seed=1).to(HPU)
    captured = hpu.HPUGraph()
    with hpu.stream(hpu.Stream()):
        captured.capture_begin()
        doubled = place * 2
        captured.capture_end()
    place.copy_(inputs(seed=2).to(HPU))
    captured.replay()
    assert torch.equal(doubled.cpu(), inputs(seed=2) * 2)
    assert len(graphs.seen.of("other")) == 1


# ---------------------------------------------------------------- training graphs of the real GaudiTrainer

GRAPHED = ["topology=hpu1", "gaudi_config=wav2vec2", "trainer.args.use_hpu_graphs_for_training=true", "trainer.args.save_strategy=no"]
GRAPHED += ["model.mask_time_prob=0.4", "model.mask_time_length=3"]
GRAPHED += [
    f"model.architecture.{size}" for size in ("num_hidden_layers=1", "hidden_size=32", "num_attention_heads=2", "intermediate_size=32")
]


class OneBatch(Fixed):
    """The same rows in every epoch."""

    def train(self, sizes, batch_size, *, seed, world_size, args):
        shape = Shape(int(sizes.lengths.max()), int(sizes.labels.max()), batch_size)

        class Same(Batches):
            def __len__(self):
                return 1

            def __iter__(self):
                yield [Slot(row, shape, self.epoch) for row in range(batch_size)]

        return Same()


@pytest.fixture
def four_steps_at_no_learning_rate(tmp_path, monkeypatch):
    """Return the losses of four steps on one batch, with SpecAugment's masks drawn beside the batch or in forward."""

    def train(*, masks_with_the_batch: bool):
        still = ["learning_rate=0", "per_device_train_batch_size=2", "num_train_epochs=4", "logging_steps=1", "warmup_steps=0"]
        if not masks_with_the_batch:
            monkeypatch.setattr("test_trainer.takes_masks", lambda model: model)
        made, _ = built(tmp_path, *GRAPHED, *(f"trainer.args.{arg}" for arg in still))
        made.batching = OneBatch()
        if not masks_with_the_batch:
            made.data_collator = replace(made.data_collator, spec_augment=None)
        with device.phase(STEP):
            made.train()
        return [line["loss"] for line in made.state.log_history if "loss" in line]

    return train


def test_masks_drawn_with_the_batch_vary_under_a_training_graph(four_steps_at_no_learning_rate):
    losses = four_steps_at_no_learning_rate(masks_with_the_batch=True)
    assert len(set(losses)) == 4
    assert len(graphs.seen.of("training")) == 1
    assert findings.what_graphs_do_wrong("training") == []


def test_masks_drawn_in_forward_are_frozen_by_a_training_graph_and_that_is_said(four_steps_at_no_learning_rate):
    losses = four_steps_at_no_learning_rate(masks_with_the_batch=False)
    assert len(losses) == 4 and len(set(losses)) == 1
    (failure,) = findings.what_graphs_do_wrong("training")
    (captured,) = graphs.seen.of("training")
    said = f"1 training graph of input shapes {list(captured.shapes[0])} froze what forward drew on the host (numpy.random):"
    assert failure.startswith(said)


def test_a_training_graph_over_changing_shapes_is_reported_with_the_shapes(tmp_path):
    made, _ = built(tmp_path, *GRAPHED, "batching=longest", "trainer.args.per_device_train_batch_size=1", "trainer.args.max_steps=18")
    made.train()
    captured = [each.shapes[0] for each in graphs.seen.of("training")]
    assert len(captured) == MOST_GRAPHS
    missed = [shapes[0] for shapes in graphs.seen.without("training")]
    assert missed and not set(missed) & set(captured)
    (failure,) = findings.what_graphs_do_wrong("training")
    assert all(str(list(shape)) in failure for shape in missed)
    assert "ran without one" in failure and "batching=buckets" in failure


def test_shapes_tried_on_the_device_leave_no_trace(tmp_path):
    ended = []
    for on in ("true", "false"):
        graphs.seen.captured.clear()
        options = [*GRAPHED, "batching.max_shapes=1", "trainer.args.max_steps=2", "trainer.args.warmup_steps=0"]
        made, _ = built(tmp_path / on, *options, f"trainer.try_shapes={on}")
        made.train()
        captured = {each.shapes[0] for each in graphs.seen.of("training")}
        ended.append((captured, torch.cat([t.detach().cpu().flatten().double() for t in made.model.parameters()]), hpu.get_rng_state()))
    assert ended[0][0] == ended[1][0] != set()
    assert all(torch.equal(a, b) for a, b in zip(ended[0][1:], ended[1][1:], strict=True))


def test_a_bad_loss_is_found_where_a_step_logs_and_named_by_the_step_it_came_in(tmp_path):
    """Nothing is asked of the device before."""
    from transformers import TrainerCallback

    from asr.errors import TrainingError

    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                device.load().forget_counts()
                made.model.lm_head.weight.data.fill_(float("nan"))

        def on_step_end(self, args, state, control, **_):
            ended.append((state.global_step, device.events("sync", "here").total()))

    options = ["topology=hpu1", "trainer.args.max_steps=8", "trainer.args.logging_steps=5", "trainer.args.save_strategy=no"]
    made, _ = built(tmp_path, *options)
    ended = []
    made.add_callback(Spoil())
    with pytest.raises(TrainingError, match="step 3: the loss is nan"):
        made.train()
    assert ended[2:] == [(3, 0), (4, 0), (5, 0)]
    assert (tmp_path / "bad_batches" / "step-3-rank-0.json").exists()


def test_a_step_left_out_on_the_device_moves_nothing(tmp_path):
    before = []

    def spoil(gradient):
        return torch.full_like(gradient, float("inf")) if made.state.global_step == 1 else gradient

    options = [*GRAPHED, "trainer.args.use_hpu_graphs_for_training=false", "trainer.args.max_steps=3", "trainer.on_nan=skip"]
    options += ["trainer.args.warmup_steps=0"]
    made, _ = built(tmp_path, *options)
    made.model.lm_head.bias.register_hook(spoil)
    step_of = made.training_step
    made.training_step = lambda *a, **k: [before.append(made.model.lm_head.weight.detach().cpu().clone()), step_of(*a, **k)][1]
    made.train()
    assert made.bad_numbers.steps_skipped == 1
    assert torch.equal(before[1], before[2]) and not torch.equal(before[0], before[1])


def test_fused_attention_is_called_where_it_is_asked_for(tmp_path):
    from asr.rehearsal.kernels import CALLED

    CALLED.clear()
    attention = ["model.attn_implementation=gaudi_fused_sdpa", "trainer.args.max_steps=1", "trainer.args.save_strategy=no"]
    made, _ = built(tmp_path, "topology=hpu1", *attention, model="wav2vec2_tiny")
    made.train()
    assert CALLED["FusedSDPA"] > 0
    assert findings.what_attention_is_not_called(made, facts_with("gaudi_fused_sdpa")) == []
    CALLED.clear()
    (failure,) = findings.what_attention_is_not_called(made, facts_with("gaudi_fused_sdpa"))
    assert failure.startswith("model.attn_implementation: gaudi_fused_sdpa was asked for, and Wav2Vec2ForCTC never calls it")
    assert findings.what_attention_is_not_called(made, facts_with("eager")) == []


def facts_with(attention):
    return Facts({"settings": {"attention": attention}, "model_class": "Wav2Vec2ForCTC"})


# ---------------------------------------------------------------- what libraries find


def test_accelerate_and_transformers_find_an_hpu():
    from accelerate.utils import is_hpu_available
    from transformers.utils import is_torch_hpu_available

    from asr import gaudi

    assert is_hpu_available() and is_torch_hpu_available()
    assert hpu.get_device_name() == "GAUDI2"
    assert gaudi.optimum_habana().utils.get_device_name() == "gaudi2"
