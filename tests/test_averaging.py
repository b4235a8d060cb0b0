"""The mean of checkpoints: its digits, its files, and which checkpoints it is of."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from conftest import EVERY_ENGINE, INSTALLED_ENGINES
from safetensors.torch import save_file
from test_best import evaluated

from asr import checkpoints, engines
from asr.averaging import Averaging, put_mean
from asr.best import Best
from asr.errors import CheckpointError, ConfigError
from asr.trainer import CTCTraining


class Model(torch.nn.Module):
    """Weights of several kinds, two names for one of them among them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.wide, self.frozen = torch.nn.Linear(40, 30), torch.nn.Linear(5, 5)
        self.double, self.half = torch.nn.Linear(4, 4).double(), torch.nn.Linear(4, 4).bfloat16()
        self.norm = torch.nn.BatchNorm1d(3)
        self.head = torch.nn.Linear(40, 30, bias=False)
        self.head.weight = self.wide.weight
        self.norm.num_batches_tracked += seed
        with torch.no_grad():
            self.frozen.weight.fill_(0.1), self.frozen.bias.fill_(-1e30)

    def stored(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.state_dict().items() if name != "head.weight"}


def saved(folder, step, seed, log=(), *, shards=1):
    """Publish a checkpoint with the weights of a seed, as a trainer does."""
    written = checkpoints.begin(folder) / f"checkpoint-{step}"
    written.mkdir()
    values = Model(seed).stored()
    if shards == 1:
        save_file(values, written / "model.safetensors", metadata={"format": "pt"})
    else:
        where = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(values)}
        for file in set(where.values()):
            save_file({name: values[name] for name in where if where[name] == file}, written / file, metadata={"format": "pt"})
        (written / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (written / "trainer_state.json").write_text(json.dumps({"log_history": list(log)}))
    return checkpoints.publish(written, folder, world_size=1).path


@pytest.mark.parametrize("shards", [1, 3])
def test_the_mean_of_weights_in_place(tmp_path, shards):
    folders = [saved(tmp_path, step, step, shards=shards if step == 2 else 1) for step in (1, 2, 3)]
    model = Model(9)
    weight = model.wide.weight
    put_mean(model, folders)
    assert model.wide.weight is weight is model.head.weight
    stored = [Model(seed).state_dict() for seed in (1, 2, 3)]
    for name, value in model.state_dict().items():
        each = [s[name] for s in stored]
        assert value.dtype == each[0].dtype
        if value.is_floating_point():
            true = sum(v.double() for v in each) / 3
            digits = {torch.float32: 1e-7, torch.float64: 1e-15, torch.bfloat16: 2**-8}[value.dtype]
            torch.testing.assert_close(value.double(), true, rtol=digits, atol=digits / 2)
        else:
            assert torch.equal(value, each[-1])  # a count is the newest's
    assert torch.equal(model.frozen.weight, Model(1).frozen.weight)  # to the last digit
    again = Model(4)
    put_mean(again, folders)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def spoilt(folder, how):
    if how == "cut short":
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[:-10])
    elif how == "none":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    else:
        values = Model(1).stored()
        values["other.weight"] = values.pop("wide.weight")
        save_file(values, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("how", "said"), [("cut short", "can't be read"), ("none", "can't be read"), ("another model", "not those of the model: other.weight")]
)
def test_weights_that_cannot_be_averaged_are_named_and_the_model_is_left_alone(tmp_path, how, said):
    folder = saved(tmp_path, 1, 1)
    spoilt(folder, how)
    model = Model(9)
    with pytest.raises(CheckpointError, match=rf"checkpoint-1.*{said}"):
        put_mean(model, [folder])
    assert torch.equal(model.wide.weight, Model(9).wide.weight)
    if how == "another model":
        with pytest.raises(CheckpointError, match=r"hold weights of different models: other\.weight"):
            put_mean(model, [folder, saved(tmp_path, 2, 2)])


def ended(folder, save_strategy="steps", every=1, step=10):
    """Return what a trainer is after its last step."""
    args = SimpleNamespace(output_dir=str(folder), save_strategy=save_strategy, metric_for_best_model="eval_wer", greater_is_better=False)
    state = SimpleNamespace(save_steps=every, max_steps=10, global_step=step)
    accelerator = SimpleNamespace(wait_for_everyone=lambda: None)
    return SimpleNamespace(args=args, state=state, accelerator=accelerator, steps_per_epoch=every, model=Model(9))


def applied(folder, averages):
    trainer = ended(folder)
    return averages.apply(trainer), trainer.model


LOG = [evaluated(1, wer=0.9), evaluated(2, wer=0.3), evaluated(3, wer=0.5), evaluated(4, wer=0.3)]


def test_the_last_or_the_best_are_averaged_and_those_are_worth_keeping(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="asr.averaging")
    for step in (1, 2, 3, 4, 10):
        saved(tmp_path, step, step, LOG)
    by_wer = Best("wer", False)
    for averages, steps in ((Averaging(2), [4, 10]), (Averaging(2, by_wer), [2, 4]), (Averaging(3, by_wer), [2, 3, 4])):
        names, model = applied(tmp_path, averages)
        assert names == [f"checkpoint-{step}" for step in steps]
        assert averages.worth_keeping(ended(tmp_path)) == {tmp_path / name for name in names}
        true = sum(Model(step).wide.weight.double() for step in steps) / len(steps)
        torch.testing.assert_close(model.wide.weight.double(), true, rtol=1e-7, atol=3e-8)
    assert "the mean of the 3 best by wer checkpoints: checkpoint-2, checkpoint-3, checkpoint-4" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    checkpoints.rotate(tmp_path, 2, protect=averages.worth_keeping(ended(tmp_path)))
    assert [each.step for each in checkpoints.every(tmp_path)] == [2, 3, 4, 10]


@pytest.mark.parametrize(
    ("how", "every", "step", "steps"),
    [
        ("steps", 2, 10, [2, 4, 10]),  # the last step is saved whatever its number
        ("steps", 3, 10, [3, 10]),
        ("steps", 3, 4, [3, 10]),
        ("epoch", 3, 4, [3, 4, 10]),  # stopped early within an epoch
        ("best", 1, 10, [1, 2]),
    ],
)
def test_what_a_preemption_saved_in_between_is_no_part_of_it(tmp_path, how, every, step, steps):
    for saved_at in (1, 2, 3, 4, 10):
        saved(tmp_path, saved_at, saved_at, LOG)
    assert {int(path.name[11:]) for path in Averaging(9).worth_keeping(ended(tmp_path, how, every, step))} == set(steps)


def test_damaged_checkpoints_are_no_part_of_it(tmp_path, caplog):
    for step in (1, 2, 3):
        saved(tmp_path, step, step, LOG)
    spoilt(tmp_path / "checkpoint-3", "cut short")
    names, _ = applied(tmp_path, Averaging(2, Best("wer", False)))
    assert names == ["checkpoint-1", "checkpoint-2"]
    assert "model.safetensors of checkpoint-3 has" in caplog.text
    names, _ = applied(tmp_path, Averaging(5))
    assert names == ["checkpoint-1", "checkpoint-2"]
    assert "trainer.average_checkpoints=5, and there are 2" in caplog.text
    for step in (1, 2):
        spoilt(tmp_path / f"checkpoint-{step}", "cut short")
    with pytest.raises(CheckpointError, match=r"^trainer\.average_checkpoints=2: there is no checkpoint to take; none in .* is whole\.$"):
        applied(tmp_path, Averaging(2))


HAS_PICKLES = pytest.mark.skipif(
    "save_safetensors" not in engines.engine(INSTALLED_ENGINES[-1]).argument_fields(), reason="transformers 5 writes safetensors alone"
)
BY_EPOCH = {"save_strategy": "epoch", "eval_strategy": "epoch"}
WER = {**BY_EPOCH, "metric_for_best_model": "wer"}


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize(
    ("by", "args", "said"),
    [
        ("last", {}, None),
        ("last", {"save_total_limit": 3}, None),
        ("last", {"save_total_limit": 2}, "only args.save_total_limit=2 are kept: set that to 3 or more"),
        ("last", {"save_strategy": False}, "args.save_strategy=no"),
        ("last", {**WER, "load_best_model_at_end": True}, "so does args.load_best_model_at_end"),
        pytest.param("last", {"save_safetensors": False}, "from safetensors only", marks=HAS_PICKLES),
        ("best", WER, None),
        ("best", {**WER, "save_total_limit": 2}, None),
        ("best", {**WER, "save_total_limit": 1}, "only the best is kept"),
        ("best", BY_EPOCH, "say by what with trainer.args.metric_for_best_model (loss or wer or cer)"),
        ("best", {**WER, "eval_strategy": "no"}, "set trainer.args.eval_strategy"),
        ("best", {**WER, "save_strategy": "steps"}, "eval_strategy=epoch and args.save_strategy=steps must be the same"),
        ("best", {**WER, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 3, "save_steps": 4}, "no multiple of"),
    ],
)
def test_what_would_leave_nothing_to_average_is_said_at_launch(engine, by, args, said):
    if said is None:
        CTCTraining(engine=engine, args=args, average_checkpoints=3, average_by=by)
        return
    with pytest.raises(ConfigError) as refused:
        CTCTraining(engine=engine, args=args, average_checkpoints=3, average_by=by)
    assert refused.value.key == "average_checkpoints"
    assert said in refused.value.problem
    CTCTraining(engine=engine, args=args, average_by=by)  # without, it is nobody's business
