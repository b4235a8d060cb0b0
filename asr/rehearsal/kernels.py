"""What habana_frameworks.torch.hpex offers, in plain torch ops: optimizer, gradient clipping, attention, CTC loss, norms.

In: tensors on any device. Out: the results of Gaudi's fused kernels by their public API
(https://docs.habana.ai/en/latest/PyTorch/Model_Optimization_PyTorch/Custom_Ops_PyTorch.html), as optimum-habana 1.21.2
calls them; rounding isn't theirs. Nothing here asks the device for a value, and no shape or scalar depends on data, so
that what a rehearsal observes (graphs, host syncs, dynamic shapes) comes from the experiment and not from its stand-ins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from torch.nn import functional


class FusedAdamW(torch.optim.Optimizer):  # type: ignore[misc]
    """AdamW whose eps stands outside the bias correction: w -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps).

    torch's AdamW adds eps after v was corrected. Steps are counted by parameter group, and saved with it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"FusedAdamW: {name} is {value}, and must not be negative.")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"FusedAdamW: betas are {betas}, and must be at least 0 and less than 1.")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bias_correction": bias_correction, "step": 0}
        super().__init__(params, defaults)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                group["step"] += 1
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        lr, step = group["lr"], group["step"]
        corrected = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step) if group["bias_correction"] else lr
        # what changes from step to step reaches the device as a tensor: a scalar would make every step a graph of its own
        step_size, kept = torch.tensor([corrected, 1 - lr * group["weight_decay"]], device=parameters[0].device).unbind()
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["exp_avg"].mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
            if group["weight_decay"]:
                parameter.mul_(kept)
            parameter.sub_(state["exp_avg"] / state["exp_avg_sq"].sqrt().add_(group["eps"]) * step_size)


class FusedClipNorm:
    """Scales gradients down to a total norm, as torch.nn.utils.clip_grad_norm_ does, with the norm in float32."""

    def __init__(self, parameters: Iterable[torch.Tensor] | torch.Tensor, max_norm: float) -> None:
        """Take `parameters` because GaudiTrainer gives them (trainer.py:835); `clip_norm` gets them again."""
        self.max_norm = float(max_norm)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def clip_norm(self, parameters: Iterable[torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """Scale the gradients of `parameters` in place, and return the total norm that they had."""
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else parameters
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return torch.tensor(0.0)
        total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient.float()) for gradient in gradients]))
        scale = (self.max_norm / (total + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)
        return total


class FusedSDPA:
    """Scaled dot product attention over [batch, heads, frames, width]; keys and values may have fewer heads than queries."""

    @staticmethod
    def apply(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool | None = False,
        scale: float | None = None,
        softmax_mode: str | bool = "None",
        recompute_mode: bool | None = None,
        valid_sequence_lengths: torch.Tensor | None = None,
        padding_side: str = "left",
    ) -> torch.Tensor:
        """Return the attention's output; `softmax_mode` and `recompute_mode` trade speed for memory or precision, and do nothing here.

        `attn_mask`: boolean, True takes part, or added to the scores. It may come together with `is_causal`, which torch refuses.
        `valid_sequence_lengths`: how many keys of each row are real; the others lie on `padding_side`. A query without keys gets zeros.
        """
        CALLED["FusedSDPA"] += 1
        causal = bool(is_causal)  # gaudi_fused_sdpa_attention.py:36 passes None on
        masks = [attn_mask, _valid_keys(valid_sequence_lengths, padding_side, key.shape[-2])]
        if any(mask is not None for mask in masks):
            masks.append(_lower_triangle(query, key) if causal else None)
            causal = False
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=_joined(masks, query.dtype),
            dropout_p=dropout_p,
            is_causal=causal,
            scale=scale,
            enable_gqa=query.dim() == 4 and query.shape[1] != key.shape[1],
        )


def _valid_keys(lengths: torch.Tensor | None, padding_side: str, num_keys: int) -> torch.Tensor | None:
    """Return the mask [batch, 1, 1, keys] of the keys that aren't padding."""
    if padding_side not in ("left", "right"):
        raise ValueError(f"FusedSDPA: padding_side is {padding_side!r}, and must be left or right.")
    if lengths is None:
        return None
    positions = torch.arange(num_keys, device=lengths.device)
    lengths = lengths.reshape(-1, 1, 1, 1)
    return positions >= num_keys - lengths if padding_side == "left" else positions < lengths


def _lower_triangle(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()


def _joined(masks: list[torch.Tensor | None], dtype: torch.dtype) -> torch.Tensor | None:
    """Return one mask that says what all say: boolean if all are, else added to the scores."""
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    joined = given[0]
    for mask in given[1:]:
        if joined.dtype == torch.bool:
            joined, mask = mask, joined
        joined = joined & mask if joined.dtype == torch.bool else joined.masked_fill(~mask, -math.inf)
    return joined if joined.dtype in (torch.bool, torch.float32) else joined.to(dtype)  # what torch takes besides the query's own


CALLED: Counter[str] = Counter()
"""How often a kernel that a program chooses by name was called; once for all replays of a graph."""


class CTCLoss(torch.autograd.Function):  # type: ignore[misc]
    """CTC loss over padded targets, as optimum-habana's wav2vec2 calls it (modeling_wav2vec2.py:425). `apply` takes no keywords."""

    @staticmethod
    def forward(
        ctx: Any,
        log_probs: torch.Tensor,
        targets: torch.Tensor,
        input_lengths: torch.Tensor,
        target_lengths: torch.Tensor,
        blank: int = 0,
        reduction: str = "mean",
        zero_infinity: bool = False,
    ) -> torch.Tensor:
        """Return the loss of `log_probs` [frames, batch, labels] against `targets` [batch, labels]; what follows a target isn't read.

        torch's op sizes log_alpha by the longest target of the batch. One more row, as long as the targets are wide,
        keeps that shape from following the data.
        """
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"CTCLoss: reduction is {reduction!r}, and must be none, mean or sum.")
        ctx.dtype = log_probs.dtype
        num_frames, num_labels = log_probs.shape[0], log_probs.shape[2]
        row = [log_probs.to(torch.promote_types(log_probs.dtype, torch.float32)), targets, input_lengths, target_lengths]
        extra = [
            row[0].new_zeros(num_frames, 1, num_labels),
            targets.new_full((1, targets.shape[1]), 1 if blank == 0 else 0),
            input_lengths.new_full((1,), num_frames),
            target_lengths.new_full((1,), targets.shape[1]),
        ]
        inputs = [torch.cat(pair, dim=1 if pair[0].dim() == 3 else 0) for pair in zip(row, extra, strict=True)]
        losses, log_alpha = torch.ops.aten._ctc_loss.Tensor(*inputs, blank, zero_infinity)
        weights = _weights(target_lengths, reduction, losses.dtype)
        ctx.save_for_backward(*inputs, losses, log_alpha, weights)
        ctx.blank, ctx.zero_infinity = blank, zero_infinity
        losses = losses[:-1]
        if zero_infinity:
            losses = losses.masked_fill(losses == math.inf, 0)
        return losses if reduction == "none" else (losses * weights).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, losses, log_alpha, weights = ctx.saved_tensors
        of_losses = torch.cat([grad.to(weights.dtype) * weights, weights.new_zeros(1)])
        gradient = torch.ops.aten._ctc_loss_backward.Tensor(of_losses, *inputs, losses, log_alpha, ctx.blank, ctx.zero_infinity)
        return gradient[:, :-1].to(ctx.dtype), None, None, None, None, None, None


def _weights(target_lengths: torch.Tensor, reduction: str, dtype: torch.dtype) -> torch.Tensor:
    """Return what each row's loss counts: torch's mean divides by the row's labels, at least 1, and by the rows."""
    if reduction == "mean":
        return 1 / (target_lengths.clamp(min=1).to(dtype) * target_lengths.shape[0])
    return torch.ones_like(target_lengths, dtype=dtype)


class FusedRMSNorm:
    """Divides by the root of the mean square over the last dimension, in float32."""

    @staticmethod
    def apply(
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        use_stages: bool = True,
        bwd_mode: int = 0,
        fast_math: bool = False,
    ) -> torch.Tensor:
        """Return the weighted norm in the dtype of `hidden_states`; the last three choose among kernels, and do nothing here."""
        values = hidden_states.float()
        normed = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
        return (normed * weight.float()).to(hidden_states.dtype)


class RotaryPosEmbeddingMode(Enum):
    """Which two values turn together: those half the width apart, or neighbours."""

    BLOCKWISE = 0
    PAIRWISE = 1


def apply_rotary_pos_emb(
    p: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    offset: int = 0,
    mode: RotaryPosEmbeddingMode = RotaryPosEmbeddingMode.BLOCKWISE,
) -> torch.Tensor:
    """Return `p` [batch, heads, frames, width] turned by the angles of `cos` and `sin`.

    With `position_ids` [batch, frames] these two are a table [positions, width], leading ones allowed. Without, they are
    broadcast over `p`, from row `offset` on.
    """
    cos, sin = (_rows(table, p, position_ids, offset) for table in (cos, sin))
    if mode is RotaryPosEmbeddingMode.PAIRWISE:
        even, odd = p.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    else:
        first, second = p.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
    return (p * cos + turned * sin).to(p.dtype)


def _rows(table: torch.Tensor, p: torch.Tensor, position_ids: torch.Tensor | None, offset: int) -> torch.Tensor:
    if position_ids is not None:
        return table.reshape(table.shape[-2:])[position_ids].unsqueeze(1)
    if offset or table.shape[-2] > p.shape[-2]:
        return table.narrow(-2, offset, p.shape[-2])
    return table


class RotaryPosEmbeddingHelperV1:
    """Half-width pairs, counted from an offset."""

    @staticmethod
    def apply(p: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, offset: int = 0) -> torch.Tensor:
        return apply_rotary_pos_emb(p, cos, sin, None, offset)


class RotaryPosEmbeddingHelperV2:
    """Half-width pairs, at given positions: what apply_customized_rope_module calls (modeling_all_models.py:81)."""

    @staticmethod
    def apply(p: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        return apply_rotary_pos_emb(p, cos, sin, position_ids)


class RotaryPosEmbeddingHelperV3:
    """Neighbouring pairs of [frames, batch, heads, width] by a cache [positions, batch or 1, pairs, cos and sin]."""

    @staticmethod
    def apply(p: torch.Tensor, rope_cache: torch.Tensor) -> torch.Tensor:
        """Return `p` with its first 2 * pairs values turned, and the rest as it was."""
        num_frames, num_pairs = p.shape[0], rope_cache.shape[-2]
        cos, sin = rope_cache[:num_frames].reshape(num_frames, -1, 1, num_pairs, 2).unbind(-1)
        width = 2 * num_pairs
        even, odd = p[..., :width].unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
        return torch.cat((turned.to(p.dtype), p[..., width:]), dim=-1)
