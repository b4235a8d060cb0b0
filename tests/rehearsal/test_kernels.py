"""The stand-ins of Gaudi's fused kernels against torch's own, and that no data shapes what they run."""

import copy
import io
import math

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from asr.rehearsal import kernels
from asr.rehearsal.kernels import CTCLoss, FusedAdamW, FusedClipNorm, FusedRMSNorm, FusedSDPA

ASKS_THE_DEVICE = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "repeat_interleave"}


class Recorder(TorchDispatchMode):
    """Notes each op with the shapes, dtypes and plain values that it gets and gives: what a lazy graph is keyed by."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        name = op._schema.name.removeprefix("aten::")
        assert name not in ASKS_THE_DEVICE, f"{name} asks the device for data"
        if name in ("index", "index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), (
                "a boolean index has as many results as its data says"
            )
        if op.namespace == "aten" and name != "lift_fresh":  # which is a number's way into a tensor
            self.ops.append((name, self.key(args), self.key(kwargs), self.key(out)))
        return out

    def key(self, value):
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), value.dtype
        if isinstance(value, dict):
            return tuple(sorted((name, self.key(item)) for name, item in value.items()))
        return tuple(map(self.key, value)) if isinstance(value, (list, tuple)) else repr(value)


def recorded(run, *args):
    with Recorder() as recorder:
        run(*args)
    assert recorder.ops
    return recorder.ops


def small_model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))


def give_gradients(model, seed, scale=1.0):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * scale


# ---- optimizer


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_torch_s_with_eps_outside_the_bias_correction(weight_decay):
    ours, theirs = small_model(), small_model()
    betas, eps = (0.9, 0.98), 1e-3  # large enough that where it stands is seen
    fused = FusedAdamW(ours.parameters(), lr=1e-2, betas=betas, eps=eps, weight_decay=weight_decay)
    plain = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=betas, eps=eps, weight_decay=weight_decay)
    for step in range(1, 8):
        lr = 1e-2 / step
        fused.param_groups[0]["lr"] = plain.param_groups[0]["lr"] = lr
        plain.param_groups[0]["eps"] = eps / math.sqrt(1 - betas[1] ** step)  # the same eps, moved outside
        for model in (ours, theirs):
            give_gradients(model, seed=step, scale=1e-2)
        fused.step()
        plain.step()
        for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-7)
    plain.param_groups[0]["eps"] = eps
    for model in (ours, theirs):
        give_gradients(model, seed=9, scale=1e-2)
    fused.step()
    plain.step()
    assert any((a - b).abs().max() > 1e-5 for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)), (
        "eps isn't seen in this test"
    )


def test_adamw_without_bias_correction():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = FusedAdamW([weight], lr=0.1, betas=(0.9, 0.99), eps=0.5, weight_decay=0.2, bias_correction=False)
    weight.grad = torch.tensor([2.0])
    optimizer.step()
    moment, square = 0.1 * 2.0, 0.01 * 4.0
    assert weight.item() == pytest.approx(1.0 * (1 - 0.1 * 0.2) - 0.1 * moment / (math.sqrt(square) + 0.5))


def test_adamw_runs_the_closure_and_leaves_a_parameter_without_gradient_alone():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = FusedAdamW([{"params": [used], "weight_decay": 0.1}, {"params": [unused]}])

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert (used != 1).all()
    assert torch.equal(unused, torch.ones(2))
    assert [group["step"] for group in optimizer.param_groups] == [1, 0]


def test_adamw_goes_on_from_a_saved_state_as_if_it_had_not_stopped():
    model = small_model()
    optimizer = FusedAdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for seed in range(3):
        give_gradients(model, seed)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed_model = copy.deepcopy(model)
    resumed = FusedAdamW(resumed_model.parameters(), lr=1.0)
    resumed.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    for seed in range(3, 6):
        for each, its_optimizer in ((model, optimizer), (resumed_model, resumed)):
            give_gradients(each, seed)
            its_optimizer.step()
    for mine, reference in zip(resumed_model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, reference)


def test_adamw_keeps_bfloat16_weights_and_moments():
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    weight.grad = torch.full((3,), 0.5, dtype=torch.bfloat16)
    optimizer = FusedAdamW([weight], lr=0.1)
    optimizer.step()
    assert weight.dtype == optimizer.state[weight]["exp_avg"].dtype == torch.bfloat16
    torch.testing.assert_close(weight.float(), torch.full((3,), 0.9), rtol=0, atol=0.01)


def test_every_adamw_step_is_the_same_graph_whatever_the_learning_rate():
    model = small_model()
    optimizer = FusedAdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    graphs = []
    for step in range(3):
        give_gradients(model, step)
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        graphs.append(recorded(optimizer.step))
    assert graphs[1] == graphs[2]  # the first also makes the moments


@pytest.mark.parametrize(("name", "value"), [("lr", -1.0), ("eps", -1e-8), ("weight_decay", -0.1), ("betas", (0.9, 1.0))])
def test_adamw_refuses_what_can_not_be(name, value):
    with pytest.raises(ValueError, match=name):
        FusedAdamW([torch.nn.Parameter(torch.ones(1))], **{name: value})


# ---- gradient clipping


@pytest.mark.parametrize("scale", [1e-3, 10.0], ids=["below", "above"])
def test_clip_norm_is_torch_s(scale):
    ours, theirs = small_model(), small_model()
    for model in (ours, theirs):
        give_gradients(model, seed=3, scale=scale)
    norm = FusedClipNorm(ours.parameters(), 1.0).clip_norm(ours.parameters())
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0))
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)


def test_clip_norm_takes_one_tensor_and_parameters_without_gradients():
    weight = torch.nn.Parameter(torch.ones(2))
    clipper = FusedClipNorm([weight], 1.0)
    assert clipper.clip_norm([weight]).item() == 0
    weight.grad = torch.tensor([3.0, 4.0], dtype=torch.float64).to(weight.dtype)
    assert clipper.clip_norm(weight).item() == pytest.approx(5.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))


def test_clip_norm_is_one_graph_whether_it_clips_or_not():
    model = small_model()
    clipper = FusedClipNorm(model.parameters(), 1.0)
    graphs = []
    for scale in (1e-3, 10.0):
        give_gradients(model, seed=1, scale=scale)
        graphs.append(recorded(clipper.clip_norm, model.parameters()))
    assert graphs[0] == graphs[1]


# ---- attention


def heads(num_queries=5, num_keys=7, num_heads=4, num_key_heads=4):
    torch.manual_seed(0)
    shapes = [(2, num_heads, num_queries, 8), (2, num_key_heads, num_keys, 8), (2, num_key_heads, num_keys, 8)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def attention(query, key, value, added, scale=None):
    """The formula, written out: `added` is what the scores get."""
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return torch.softmax(scores + added, -1) @ value


def added_of(allowed):
    return torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)


ALLOWED = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])[:, None, None, :]
LOWER = torch.ones(5, 7, dtype=torch.bool).tril()
LENGTHS = torch.tensor([7, 4])
ATTENTIONS = {
    "plain": ((), torch.zeros(1)),
    "positions None": ((None, 0.0, None, None, "None", False), torch.zeros(1)),
    "boolean mask": ((ALLOWED,), added_of(ALLOWED)),
    "added mask": ((added_of(ALLOWED), 0.0, False, None, "fast", True), added_of(ALLOWED)),
    "causal": ((None, 0.0, True, None, "fast"), added_of(LOWER)),
    "causal and boolean mask": ((ALLOWED, 0.0, True), added_of(ALLOWED & LOWER)),
    "causal and added mask": ((added_of(ALLOWED), 0.0, True), added_of(ALLOWED & LOWER)),
    "lengths, padded right": ((None, 0.0, False, None, "fast", None, LENGTHS, "right"), added_of(ALLOWED)),
    "lengths, padded left": ((None, 0.0, False, None, "fast", None, LENGTHS, "left"), added_of(ALLOWED.flip(-1))),
    "causal, lengths": ((None, 0.0, True, None, "fast", None, LENGTHS, "right"), added_of(ALLOWED & LOWER)),
}


@pytest.mark.parametrize("case", ATTENTIONS)
def test_attention_is_the_formula_and_so_are_its_gradients(case):
    args, added = ATTENTIONS[case]
    tensors, references = heads(), heads()
    FusedSDPA.apply(*tensors, *args).square().sum().backward()
    attention(*references, added).square().sum().backward()
    torch.testing.assert_close(FusedSDPA.apply(*tensors, *args), attention(*references, added))
    for tensor, reference in zip(tensors, references, strict=True):
        torch.testing.assert_close(tensor.grad, reference.grad)


def test_attention_with_a_scale_and_fewer_key_heads():
    tensors = heads(num_key_heads=2)
    torch.testing.assert_close(FusedSDPA.apply(*tensors, None, 0.0, False, 0.3), attention(*tensors, torch.zeros(1), scale=0.3))


def test_attention_drops_out():
    tensors = heads()
    torch.manual_seed(1)
    first, second = (FusedSDPA.apply(*tensors, None, 0.5) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_query_without_keys_gets_zeros():
    out = FusedSDPA.apply(*heads(7, 7), None, 0.0, True, None, "fast", None, LENGTHS, "left")
    assert torch.isfinite(out).all()
    assert (out[1, :, :3] == 0).all()  # real keys begin behind these three
    assert (out[1, :, 3:] != 0).any()


def test_attention_takes_a_float32_mask_with_bfloat16_queries():
    tensors = [tensor.detach().bfloat16() for tensor in heads()]
    out = FusedSDPA.apply(*tensors, added_of(ALLOWED))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), attention(*[t.float() for t in tensors], added_of(ALLOWED)), rtol=0, atol=0.02)


def test_attention_refuses_another_side():
    with pytest.raises(ValueError, match="padding_side is 'top', and must be left or right"):
        FusedSDPA.apply(*heads(), None, 0.0, False, None, "None", None, LENGTHS, "top")


def test_attention_is_one_graph_whatever_the_lengths():
    tensors = [tensor.detach() for tensor in heads()]
    graphs = [
        recorded(FusedSDPA.apply, *tensors, None, 0.0, True, None, "fast", None, torch.tensor(lengths), "right")
        for lengths in ([7, 7], [1, 3])
    ]
    assert graphs[0] == graphs[1]


# ---- CTC loss


FRAMES, LABELS = 9, 5


def ctc_batch(targets, input_lengths, blank=0, width=None):
    """A batch as optimum-habana's wav2vec2 gives it: log probabilities [frames, batch, labels], targets padded with -100."""
    torch.manual_seed(0)
    logits = torch.randn(FRAMES, len(targets), LABELS, requires_grad=True)
    width = max(map(len, targets)) if width is None else width
    padded = torch.tensor([row + [-100] * (width - len(row)) for row in targets], dtype=torch.long).reshape(len(targets), width)
    return logits, padded, torch.tensor(input_lengths), (padded >= 0).sum(-1)


CTC_BATCHES = {
    "ordinary": ([[1, 2, 2], [3], [4, 1]], [9, 4, 7], 0, None),
    "an empty target": ([[1, 2, 3], [], [4]], [9, 5, 9], 0, None),
    "all empty": ([[], []], [9, 3], 0, 0),
    "another blank": ([[0, 2, 2], [3]], [9, 9], 4, None),
    "padded wider than the frames": ([[1, 2], [3, 1]], [9, 6], 0, 12),
    "one row": ([[1, 2, 3, 4]], [8], 0, None),
    "too few frames": ([[1, 1, 1, 2], [2, 3]], [4, 9], 0, None),
}


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("case", CTC_BATCHES)
def test_ctc_loss_is_torch_s_and_so_are_its_gradients(case, reduction, zero_infinity):
    targets, frames, blank, width = CTC_BATCHES[case]
    ours, padded, input_lengths, target_lengths = ctc_batch(targets, frames, blank, width)
    theirs = ours.detach().clone().requires_grad_()
    loss = CTCLoss.apply(ours.log_softmax(-1), padded, input_lengths, target_lengths, blank, reduction, zero_infinity)
    reference = functional.ctc_loss(
        theirs.log_softmax(-1),
        padded.masked_select(padded >= 0),
        input_lengths,
        target_lengths,
        blank=blank,
        reduction=reduction,
        zero_infinity=zero_infinity,
    )
    torch.testing.assert_close(loss, reference)
    weights = torch.arange(1.0, 1 + loss.numel()).reshape(loss.shape)
    (loss * weights).sum().backward()
    (reference * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, equal_nan=True)
    assert torch.isfinite(loss).all() == (case != "too few frames" or zero_infinity)


def test_ctc_loss_has_its_gradient_by_differences():
    logits, *rest = ctc_batch([[1, 2], [], [3]], [9, 5, 4])
    logits = logits.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CTCLoss.apply(x.log_softmax(-1), *rest, 0, "mean", False), (logits,))


def test_ctc_loss_passes_anomaly_detection_when_targets_are_padded_wider_than_the_frames():
    logits, *rest = ctc_batch([[1, 2]], [9], width=12)
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly(check_nan=True):
        CTCLoss.apply(logits.log_softmax(-1), *rest).backward()
    assert torch.isfinite(logits.grad).all()


def test_ctc_loss_refuses_another_reduction():
    logits, *rest = ctc_batch([[1]], [9])
    with pytest.raises(ValueError, match="reduction is 'max', and must be none, mean or sum"):
        CTCLoss.apply(logits.log_softmax(-1), *rest, 0, "max", False)


def test_ctc_loss_is_one_graph_whatever_the_lengths():
    def forward_and_backward(targets, frames):
        logits, *rest = ctc_batch(targets, frames, width=4)
        return recorded(lambda: CTCLoss.apply(logits.log_softmax(-1), *rest, 0, "mean", True).backward())

    assert forward_and_backward([[1, 2, 3, 4], [1, 2]], [9, 9]) == forward_and_backward([[1], []], [2, 5])


# ---- norm and rotary positions


def test_rms_norm_is_torch_s():
    torch.manual_seed(0)
    values, weight = torch.randn(2, 3, 8), torch.randn(8)
    reference = functional.rms_norm(values, (8,), weight, 1e-5)
    torch.testing.assert_close(FusedRMSNorm.apply(values, weight, 1e-5), reference)
    out = FusedRMSNorm.apply(values.bfloat16(), weight, 1e-5, False, 0, True)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), reference, rtol=0, atol=0.05)


def angles(num_positions, width):
    """cos and sin tables [positions, width] for pairs half the width apart, as rotary models keep them."""
    frequencies = 100.0 ** (-torch.arange(0, width, 2) / width)
    turns = torch.outer(torch.arange(num_positions), frequencies)
    return turns.cos(), turns.sin()


def turned_by_complex_numbers(first, second, cos, sin):
    """Turn each pair in the complex plane."""
    turned = torch.complex(first, second) * torch.complex(cos, sin)
    return turned.real, turned.imag


def test_rotary_positions_turn_pairs_half_the_width_apart():
    torch.manual_seed(0)
    query, positions = torch.randn(2, 4, 3, 8), torch.tensor([[0, 1, 2], [5, 6, 7]])
    cos, sin = angles(10, 8)
    first, second = query.chunk(2, -1)
    reference = torch.cat(turned_by_complex_numbers(first, second, cos[positions][:, None], sin[positions][:, None]), -1)
    wide = [torch.cat((table, table), -1) for table in (cos, sin)]
    tables = [table[None, None] for table in wide]
    torch.testing.assert_close(kernels.RotaryPosEmbeddingHelperV2.apply(query, *tables, positions), reference)
    chosen = [table[positions].unsqueeze(1) for table in wide]
    torch.testing.assert_close(kernels.RotaryPosEmbeddingHelperV2.apply(query, *chosen, None), reference)
    for row, offset in enumerate((0, 5)):
        torch.testing.assert_close(kernels.RotaryPosEmbeddingHelperV1.apply(query[row], *wide, offset), reference[row])
    assert kernels.RotaryPosEmbeddingHelperV2.apply(query.bfloat16(), *tables, positions).dtype == torch.bfloat16


def test_rotary_positions_turn_neighbours():
    torch.manual_seed(0)
    query = torch.randn(2, 3, 4, 8)  # batch, frames, heads, width: diffusers' Wan
    cos, sin = angles(3, 8)
    pairs = turned_by_complex_numbers(query[..., 0::2], query[..., 1::2], cos[:, None], sin[:, None])
    reference = torch.stack(pairs, -1).flatten(-2)
    wide = [table.repeat_interleave(2, -1)[None, :, None] for table in (cos, sin)]
    out = kernels.apply_rotary_pos_emb(query, *wide, None, 0, kernels.RotaryPosEmbeddingMode.PAIRWISE)
    torch.testing.assert_close(out, reference)


def test_rotary_cache_turns_the_first_values_only():
    torch.manual_seed(0)
    query = torch.randn(3, 2, 4, 12)  # frames, batch, heads, width: ChatGLM
    cos, sin = angles(6, 8)
    cache = torch.stack((cos, sin), -1)[:, None]
    pairs = turned_by_complex_numbers(query[..., 0:8:2], query[..., 1:8:2], cos[:3, None, None], sin[:3, None, None])
    reference = torch.cat((torch.stack(pairs, -1).flatten(-2), query[..., 8:]), -1)
    for table in (cache, cache.expand(-1, 2, -1, -1), cache[:, 0]):
        torch.testing.assert_close(kernels.RotaryPosEmbeddingHelperV3.apply(query, table), reference)
