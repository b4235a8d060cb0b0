"""Whether a captured graph still does what forward does: what a capture freezes, and how it shows.

In: a forward, and what its capture gave. Out: the host's generators of random numbers on which it depends, and whether the
first replay on other inputs gives what forward itself gives for them.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from asr.rehearsal import device, hpu
from asr.rehearsal.device import host_view

PROBES = 12
"""How often a forward that draws on the host is run again: of two layers of which a tenth are dropped, 92 % of the times it shows."""


class Outputs:
    """What a captured forward gave: the tensors that a replay writes into, and the structure around them."""

    def __init__(self, outputs: Any) -> None:
        self.leaves, self.spec = pytree.tree_flatten(outputs)
        self.places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]
        self.tensors: list[torch.Tensor] = [self.leaves[i] for i in self.places]

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Any:
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return pytree.tree_unflatten(leaves, self.spec)

    def detached(self) -> list[torch.Tensor]:
        return [tensor.detach().clone() for tensor in self.tensors]


class FirstReplay:
    """Compares what a graph's first replay on new inputs gives with what forward itself gives for them.

    They differ where forward depends on what a capture freezes: numbers drawn or counted in Python, a branch on a value.
    """

    def __init__(self, module: torch.nn.Module, report: Callable[[], object]) -> None:
        self.module, self.report = module, report
        self.calls = 0

    @contextlib.contextmanager
    def against(self, forward: Callable[[], Any], outputs: Outputs) -> Iterator[None]:
        """Compare the replay that runs inside, if it is the first after the one for the captured inputs."""
        self.calls += 1
        if self.calls != 2:
            yield
            return
        host, device_s = _host_states(), hpu.get_rng_state()
        with device.phase("probe"), without_traces(self.module):
            expected = Outputs(forward()).detached()
        _set_host_states(host)
        assert torch.equal(device_s, hpu.get_rng_state())
        yield
        if not _equal(expected, outputs.tensors):
            self.report()


def _equal(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    """Say whether two forwards gave the same, to the last bit; what is no number equals what is none."""
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return False
    pairs = zip(ours, theirs, strict=True)
    return all(torch.allclose(host_view(one), host_view(other), rtol=0, atol=0, equal_nan=True) for one, other in pairs)


@contextlib.contextmanager
def without_traces(module: torch.nn.Module) -> Iterator[None]:
    """Let a capture leave buffers and random numbers as they were: a device doesn't compute what it captures, this one does."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    state = hpu.get_rng_state()
    try:
        yield
    finally:
        hpu.set_rng_state(state)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


class HostRandomness:
    """What a forward draws from the host's generators of random numbers, and whether that changes what it gives."""

    def __init__(self) -> None:
        self.before = _host_states()

    def frozen(self, forward: Callable[[], Any], captured: Outputs, module: torch.nn.Module) -> tuple[str, ...]:
        """Return the generators on whose numbers `forward` depends; call it after the capture.

        Some draw to no effect: LayerDrop of 0 does. So forward is run again with other numbers of one generator, and all else as
        it was.
        """
        after = _host_states()
        drawn = [name for name in after if not _same(after[name], self.before[name])]
        try:
            with torch.no_grad(), device.phase("probe"):
                return tuple(name for name in drawn if self._depends_on(name, forward, captured, module))
        finally:
            _set_host_states(after)

    def _depends_on(self, name: str, forward: Callable[[], Any], captured: Outputs, module: torch.nn.Module) -> bool:
        for seed in range(PROBES):
            _set_host_states(self.before)
            _SEEDS[name](seed)
            with without_traces(module):
                again = Outputs(forward())
            if not _equal(again.tensors, captured.tensors):
                return True
        return False


_SEEDS: dict[str, Callable[[int], Any]] = {
    "random": random.seed,
    "numpy.random": np.random.seed,
    "torch's CPU generator": torch.default_generator.manual_seed,
}


def _host_states() -> dict[str, Any]:
    return dict(zip(_SEEDS, (random.getstate(), np.random.get_state(), torch.random.get_rng_state()), strict=True))


def _set_host_states(states: dict[str, Any]) -> None:
    setters: list[Callable[[Any], Any]] = [random.setstate, np.random.set_state, torch.random.set_rng_state]
    for setter, state in zip(setters, states.values(), strict=True):
        setter(state)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other))
    return all(np.array_equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))
