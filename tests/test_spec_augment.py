"""Masks drawn on the host: transformers' own statistics, and the same result as masks drawn inside forward."""

import copy
import importlib.util
import inspect
import sys
import timeit
import types
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from asr.frames import MODEL_TYPES, FrameCount
from asr.spec_augment import SpecAugment, takes_masks

WIDTH = 32
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 8}
POSITIONS = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
OWN = {
    "sew": {**POSITIONS, "squeeze_factor": 2},
    "sew-d": {**POSITIONS, "squeeze_factor": 2},
    "wav2vec2-bert": {"feature_projection_input_dim": 20, "conv_depthwise_kernel_size": 5},
}
MASKED = {"mask_time_prob": 0.4, "mask_time_length": 4, "mask_feature_prob": 0.2, "mask_feature_length": 3}


def model_of(model_type, **values):
    """A tiny model in which nothing but the masks is drawn."""
    extra = OWN.get(model_type, {**POSITIONS, "conv_dim": [16] * 7})
    config = transformers.AutoConfig.for_model(model_type, **SMALL, **extra, **{**MASKED, **values})
    config.update({name: 0.0 for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float)})
    torch.manual_seed(0)
    return transformers.AutoModelForCTC.from_config(config).train()


def batch_of(model, lengths=(16000, 11000, 9000)):
    torch.manual_seed(1)
    shape = (len(lengths), max(lengths))
    if model.main_input_name == "input_features":
        lengths, shape = [n // 160 for n in lengths], (len(lengths), max(lengths) // 160, 20)
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    labels = torch.randint(1, 8, (len(lengths), 4))
    return {model.main_input_name: torch.randn(shape) * 0.1, "attention_mask": mask, "labels": labels}


def masks_for(model, batch, row=0):
    """The masks that a collator would draw for this batch, as tensors."""
    lengths = batch["attention_mask"].sum(-1)
    frames = FrameCount.of(model.config.to_dict(), with_adapter=False)(lengths)
    augment = SpecAugment.for_model(model, seed=3)
    time, features = augment.draw(frames, frames.max(), epoch=0, rows=range(row, row + len(lengths)))
    return {"mask_time_indices": torch.from_numpy(time), "mask_feature_indices": torch.from_numpy(features)}


def masked_inside(monkeypatch, module, masks, name="_compute_mask_indices", give=lambda mask: mask.numpy()):
    """Have a modeling module's own drawing return these masks."""
    by_width = {mask.shape[1]: mask for mask in masks.values()}
    assert len(by_width) == 2, "frames and features must differ in number, to be told apart here"
    monkeypatch.setattr(module, name, lambda shape, *args, **kwargs: give(by_width[shape[1]]))


def gradients(model):
    """Gradients by name; wav2vec2-conformer has weights that no forward uses (pos_conv_embed, transformers 4.55)."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def embedding_of(model):
    return next(p for name, p in model.named_parameters() if name.endswith("masked_spec_embed"))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_given_masks_do_what_transformers_does_with_its_own(model_type, monkeypatch):
    plain = model_of(model_type)
    plain.config.mask_feature_min_masks = 0  # WavLMConfig lacks it, and WavLM's own forward fails for that
    ours = takes_masks(copy.deepcopy(plain))
    batch = batch_of(plain)
    masks = masks_for(plain, batch)
    assert all(mask.any() for mask in masks.values())
    masked_inside(monkeypatch, sys.modules[type(plain).__module__], masks)
    expected, got = plain(**batch), ours(**batch, **masks)
    expected.loss.backward()
    got.loss.backward()
    torch.testing.assert_close(got.logits, expected.logits)
    torch.testing.assert_close(gradients(ours), gradients(plain))
    assert embedding_of(ours).grad.abs().sum() > 0
    assert (ours(**batch).logits - got.logits).abs().max() > 1e-4  # the masks had something to change


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_without_masks_the_model_is_the_untouched_one_and_draws_nothing(model_type):
    plain = model_of(model_type)
    ours = takes_masks(copy.deepcopy(plain))
    plain.config.update({"mask_time_prob": 0.0, "mask_feature_prob": 0.0})
    batch = batch_of(plain)
    torch.testing.assert_close(ours(**batch).logits, plain(**batch).logits)
    torch.testing.assert_close(ours.eval()(**batch).logits, plain.eval()(**batch).logits)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_frames_before_the_adapter_are_the_hidden_states_that_are_masked(model_type, monkeypatch):
    values = {"add_adapter": True} if "wav2vec2" in model_type else {}
    model = model_of(model_type, **values).eval()
    scale = 160 if model_type == "wav2vec2-bert" else 1
    frames = FrameCount.of(model.config.to_dict(), with_adapter=False)
    inner = next(module for module in model.modules() if hasattr(module, "_mask_hidden_states"))
    seen = []
    monkeypatch.setattr(inner, "_mask_hidden_states", lambda hidden, **kwargs: seen.append(hidden.shape[1]) or hidden)
    for length in (1999, 2000, 4479, 4480, 4481, 5999):
        length //= scale
        width = (20,) if scale > 1 else ()
        with torch.no_grad():
            model(torch.randn(1, length, *width))
        assert seen.pop() == frames(length), length


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_is_saved_is_a_plain_model(model_type, tmp_path):
    plain = model_of(model_type)
    ours = takes_masks(copy.deepcopy(plain))
    batch = batch_of(plain)
    ours.save_pretrained(tmp_path)
    loaded = type(plain).from_pretrained(tmp_path)
    assert type(loaded) is type(plain)
    assert loaded.config.architectures == [type(plain).__name__]
    assert isinstance(ours, type(plain))
    assert list(ours.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).logits, plain.eval()(**batch).logits)
    ours.load_state_dict(loaded.state_dict())


def test_the_trainer_reads_the_same_signature():
    """With **kwargs added, Trainer would take the loss for one divided by the number of labels; without labels, not evaluate."""
    plain = model_of("wav2vec2")
    before = list(inspect.signature(plain.forward).parameters)
    ours = takes_masks(plain)
    after = list(inspect.signature(ours.forward).parameters)
    rest = ["kwargs"] if before[-1] == "kwargs" else []  # transformers 5 has them
    assert after == [*before[: len(before) - len(rest)], "mask_time_indices", "mask_feature_indices", *rest]
    assert transformers.utils.find_labels(type(ours)) == ["labels"]


def test_a_model_is_changed_once_and_one_without_masks_never():
    ours = takes_masks(model_of("hubert"))
    classes = type(ours), type(ours.hubert)
    assert takes_masks(ours) is ours
    assert (type(ours), type(ours.hubert)) == classes
    assert type(takes_masks(model_of("hubert"))) is classes[0]
    linear = torch.nn.Linear(2, 2)
    assert takes_masks(linear) is linear
    assert type(linear) is torch.nn.Linear


def test_a_copy_of_a_changed_model_takes_masks_of_its_own():
    ours = takes_masks(model_of("wav2vec2"))
    twin = copy.deepcopy(ours)
    batch = batch_of(ours)
    masks = masks_for(ours, batch)
    assert torch.equal(twin(**batch, **masks).logits, ours(**batch, **masks).logits)
    assert not torch.equal(twin(**batch).logits, ours(**batch, **masks).logits)


def test_nothing_is_kept_after_forward_even_when_it_fails():
    ours = takes_masks(model_of("wav2vec2"))
    batch = batch_of(ours)
    masks = masks_for(ours, batch)
    ours(**batch, **masks)
    assert ours.wav2vec2._given_masks == (None, None)
    with pytest.raises(AssertionError, match=r"time masks \(3, 48\) for hidden states \(3, 49, 32\)"):
        ours(**batch, mask_time_indices=masks["mask_time_indices"][:, 1:])
    assert ours.wav2vec2._given_masks == (None, None)


@pytest.mark.parametrize("model_type", ["wav2vec2", "wav2vec2-bert"])
def test_the_mask_embedding_has_a_gradient_though_nothing_is_masked(model_type):
    ours = takes_masks(model_of(model_type))
    batch = batch_of(ours)
    masks = {name: torch.zeros_like(mask) for name, mask in masks_for(ours, batch).items()}
    result = ours(**batch, **masks)
    result.loss.backward()
    assert torch.equal(embedding_of(ours).grad, torch.zeros(WIDTH))
    assert torch.equal(result.logits, ours(**batch).logits)


@pytest.mark.parametrize("model_type", ["wav2vec2", "wav2vec2-bert"])
def test_gradient_checkpointing_changes_nothing(model_type):
    ours = takes_masks(model_of(model_type))
    twin = copy.deepcopy(ours)
    twin.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = batch_of(ours)
    masks = masks_for(ours, batch)
    for model in (ours, twin):
        model(**batch, **masks).loss.backward()
    torch.testing.assert_close(gradients(twin), gradients(ours))


@pytest.mark.parametrize("model_type", ["wav2vec2", "wav2vec2-bert"])
def test_bf16_autocast_stays_bf16_after_the_masks(model_type, monkeypatch):
    ours = takes_masks(model_of(model_type))
    batch = batch_of(ours)
    masks = masks_for(ours, batch)
    inner = next(module for module in ours.modules() if hasattr(module, "_mask_hidden_states"))
    apply, seen = inner._mask_hidden_states, []

    def watched(hidden, **kwargs):
        masked = apply(hidden, **kwargs)
        seen.append((hidden.dtype, masked.dtype))
        return masked

    monkeypatch.setattr(inner, "_mask_hidden_states", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ours(**batch, **masks).loss
    loss.backward()
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert embedding_of(ours).grad.dtype == torch.float32


def test_ddp_passes_the_masks_on(tmp_path):
    ours = takes_masks(model_of("hubert"))
    twin = copy.deepcopy(ours)
    batch = batch_of(ours)
    masks = masks_for(ours, batch)
    ours(**batch, **masks).loss.backward()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(twin)
        for _ in range(2):  # the second forward would fail, had a parameter gone unused in the first
            twin.zero_grad()
            wrapped(**batch, **masks).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(gradients(twin), gradients(ours))


@pytest.fixture
def gaudi_wav2vec2(monkeypatch):
    """optimum-habana's wav2vec2 module, read from its file: only its question for the device's name is answered."""
    spec = importlib.util.find_spec("optimum")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations]
    found = [f for folder in folders if (f := folder / "habana/transformers/models/wav2vec2/modeling_wav2vec2.py").is_file()]
    if not found:
        pytest.skip("optimum-habana is not installed")
    for name in ("habana_frameworks", "habana_frameworks.torch", "habana_frameworks.torch.hpu"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["habana_frameworks.torch.hpu"].get_device_name = lambda: "GAUDI"
    spec = importlib.util.spec_from_file_location("gaudi_wav2vec2", found[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    modeling = transformers.models.wav2vec2.modeling_wav2vec2
    monkeypatch.setattr(modeling.Wav2Vec2Model, "forward", module.gaudi_wav2vec2_forward)
    monkeypatch.setattr(modeling.Wav2Vec2Model, "_mask_hidden_states", module._gaudi_wav2vec2_mask_hidden_states)
    monkeypatch.setattr(modeling.Wav2Vec2Encoder, "forward", module.gaudi_wav2vec2_encoder_forward)
    monkeypatch.setattr(modeling.Wav2Vec2ForCTC, "forward", module.gaudi_wav2vec2forctc_forward)
    return module


@pytest.mark.parametrize("replaced_first", [True, False])
def test_the_methods_that_optimum_habana_replaces_are_served_too(replaced_first, request, monkeypatch):
    ours, plain = takes_masks(model_of("wav2vec2")), model_of("wav2vec2")
    module = request.getfixturevalue("gaudi_wav2vec2")
    if replaced_first:
        ours = takes_masks(model_of("wav2vec2"))
    batch = batch_of(plain)
    masks = masks_for(plain, batch)
    masked_inside(monkeypatch, module, masks, "_gaudi_wav2vec2_compute_mask_indices", give=lambda mask: mask)
    expected, got = plain(**batch), ours(**batch, **masks)
    expected.loss.backward()
    got.loss.backward()
    torch.testing.assert_close(got.logits, expected.logits)
    torch.testing.assert_close(gradients(ours), gradients(plain))
    torch.testing.assert_close(ours.eval()(**batch).logits, plain.eval()(**batch).logits)


# ---------------------------------------------------------------------------------------------- what is drawn

TIME_ONLY = SpecAugment(
    mask_time_prob=0.3, mask_time_length=5, mask_time_min_masks=2,
    mask_feature_prob=0.0, mask_feature_length=4, mask_feature_min_masks=0, hidden_size=24, seed=7,
)  # fmt: skip
BOTH = replace(TIME_ONLY, mask_feature_prob=0.2)


@pytest.mark.parametrize(
    ("share", "length", "min_masks", "frames"),
    [
        (0.3, 5, 2, 50),
        (0.065, 10, 0, 97),  # 0.63 spans: rounded up by chance
        (0.05, 10, 2, 149),
        (0.5, 1, 0, 40),
        (0.8, 7, 0, 60),
        (1.0, 10, 5, 33),  # clamped to what the row holds
        (0.3, 10, 2, 10),  # one place alone
        (0.9, 3, 1, 4),
    ],
)
def test_the_statistics_are_those_of_transformers(share, length, min_masks, frames):
    draws = 4000
    np.random.seed(0)
    theirs = np.concatenate([_compute_mask_indices((1, frames), share, length, min_masks=min_masks) for _ in range(draws)])
    augment = replace(TIME_ONLY, mask_time_prob=share, mask_time_length=length, mask_time_min_masks=min_masks)
    ours, _ = augment.draw([frames] * draws, frames, epoch=0, rows=range(draws))
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.01)
    histograms = [np.bincount(mask.sum(1), minlength=frames + 1) / draws for mask in (ours, theirs)]
    assert np.abs(histograms[0] - histograms[1]).max() < 0.04  # the share of draws with n frames masked, for every n
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 0.04  # how often each position is masked
    pairs = [(mask[:, 1:] & mask[:, :-1]).mean() for mask in (ours, theirs)]
    assert pairs[0] == pytest.approx(pairs[1], abs=0.015)


def test_features_are_masked_by_the_same_law():
    np.random.seed(0)
    theirs = np.concatenate([_compute_mask_indices((1, 24), 0.2, 4) for _ in range(4000)])
    _, ours = BOTH.draw([9] * 4000, 9, epoch=0, rows=range(4000))
    assert ours.shape == (4000, 24)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.01)
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 0.04


def test_padded_rows_have_the_statistics_of_transformers_attention_mask():
    np.random.seed(0)
    attention_mask = (torch.arange(120) < torch.tensor([60, 120])[:, None]).long()
    theirs = np.stack([_compute_mask_indices((2, 120), 0.3, 5, attention_mask, 2) for _ in range(3000)])
    short, _ = TIME_ONLY.draw([60] * 3000, 120, epoch=0, rows=range(3000))
    assert not short[:, 60:].any()
    assert np.abs(short.mean(0) - theirs[:, 0].mean(0)).max() < 0.04
    assert short.sum(1).std() == pytest.approx(theirs[:, 0].sum(1).std(), rel=0.08)


def test_a_row_s_masks_depend_on_nothing_but_seed_epoch_row_and_its_own_frames():
    alone = {row: BOTH.draw([30 + row], 30 + row, epoch=2, rows=[row]) for row in range(20)}
    for order in (list(range(20)), list(range(19, -1, -1)), [3, 17, 3]):
        time, features = BOTH.draw([30 + row for row in order], 80, epoch=2, rows=order)
        for i, row in enumerate(order):
            assert np.array_equal(time[i, : 30 + row], alone[row][0][0])
            assert not time[i, 30 + row :].any()
            assert np.array_equal(features[i], alone[row][1][0])


def test_seed_epoch_and_row_all_change_the_masks():
    def masks(seed, epoch, row):
        return replace(BOTH, seed=seed).draw([200], 200, epoch=epoch, rows=[row])

    drawn = [masks(0, 0, 0), masks(1, 0, 0), masks(0, 1, 0), masks(0, 0, 1), masks(1, 1, 0), masks(0, 1, 1), masks(2**40, 0, 0)]
    assert len({time.tobytes() for time, _ in drawn}) == len(drawn)
    time, features = BOTH.draw([200] * 3000, 200, epoch=0, rows=range(3000))
    for mask in (time, features):  # neighbouring streams are independent: no row foretells the next
        noise = (mask - mask.mean(0)) / mask.std(0)
        assert abs((noise[1:] * noise[:-1]).mean()) < 0.01
    assert len({row.tobytes() for row in time}) == 3000


def test_fillers_and_rows_without_frames_are_left_alone():
    time, features = BOTH.draw([40, 40, 0], 40, epoch=0, rows=[5, -1, 6])
    for mask in (time, features):
        assert mask[0].any()
        assert not mask[1:].any()
    time, features = BOTH.draw([0, 0], 0, epoch=0, rows=[-1, -1])
    assert time.shape == (2, 0)
    assert features.shape == (2, 24)


def test_a_row_shorter_than_one_span_has_no_mask_and_a_row_as_long_has_one():
    time, _ = TIME_ONLY.draw([4, 5, 1], 9, epoch=0, rows=[0, 1, 2])
    assert time.sum(1).tolist() == [0, 5, 0]
    _, features = replace(BOTH, hidden_size=3).draw([9], 9, epoch=0, rows=[0])
    assert not features.any()


def test_an_axis_is_none_only_where_its_probability_is_zero():
    assert [mask is None for mask in TIME_ONLY.draw([9], 9, epoch=0, rows=[0])] == [False, True]
    assert [mask is None for mask in replace(BOTH, mask_time_prob=0.0).draw([9], 9, epoch=0, rows=[0])] == [True, False]
    rare = replace(TIME_ONLY, mask_time_prob=1e-9, mask_time_min_masks=0)
    time, _ = rare.draw([50] * 8, 50, epoch=0, rows=range(8))
    assert time.dtype == np.bool_
    assert not time.any()


def test_more_real_frames_than_the_batch_has_is_a_defect():
    with pytest.raises(AssertionError, match="row 4 has 10 frames in a batch of 9"):
        TIME_ONLY.draw([10], 9, epoch=0, rows=[4])


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_config_says_what_is_masked(model_type):
    assert SpecAugment.for_model(model_of(model_type, mask_time_min_masks=1), seed=9) == SpecAugment(
        **MASKED, mask_time_min_masks=1, mask_feature_min_masks=0, hidden_size=WIDTH, seed=9
    )


@pytest.mark.parametrize("values", [{"apply_spec_augment": False}, {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}])
def test_nothing_to_mask_is_none(values):
    assert SpecAugment.for_model(model_of("wav2vec2", **values), seed=0) is None


def test_a_model_that_can_not_be_masked_is_none():
    model = torch.nn.Linear(2, 2)
    model.config = transformers.Wav2Vec2Config(mask_time_prob=0.5)
    assert SpecAugment.for_model(model, seed=0) is None


def test_a_row_is_drawn_in_microseconds():
    """About 30 where this was written; the bound leaves room for a shared machine, none for a loop over frames."""
    augment = replace(BOTH, mask_time_prob=0.065, mask_time_length=10, hidden_size=1024)
    draw = partial(augment.draw, [1499] * 32, 1499, epoch=0, rows=range(32))
    assert min(timeit.repeat(draw, number=1, repeat=20)) / 32 < 200e-6
