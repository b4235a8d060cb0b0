"""HPU graphs on the stand-in: ops captured once for each set of inputs, and replayed without any Python.

In: a module. Out: the same module whose forward, and backward in training, is captured and replayed; and what was
captured, and what ran uncaptured (asr.rehearsal.faithfulness: what a capture froze). Signatures and limits are
those of https://docs.habana.ai/en/latest/PyTorch/Reference/Python_Packages.html ("HPU Graph APIs") and
https://docs.habana.ai/en/latest/PyTorch/Model_Optimization_PyTorch/HPU_Graphs_Training.html.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from asr.rehearsal import device
from asr.rehearsal.faithfulness import FirstReplay, HostRandomness, Outputs, without_traces

Shapes = tuple[tuple[int, ...], ...]
"""Of the tensors among a forward's inputs."""


@dataclass(frozen=True)
class Captured:
    """A graph that was captured: of which inputs, with how many ops, and what it will never change again."""

    kind: str
    """training, inference, or other: what a program captures by HPUGraph itself."""
    shapes: Shapes = ()
    """Shapes of the tensors among the inputs."""
    forward_ops: int = 0
    backward_ops: int = 0
    frozen: tuple[str, ...] = ()
    """Generators of the host's random numbers on which forward depends: a replay repeats what they gave."""


@dataclass
class Seen:
    """What graphs this process has captured, and which forwards found no room for one."""

    captured: list[Captured] = field(default_factory=list)
    uncaptured: Counter[tuple[str, Shapes]] = field(default_factory=Counter)
    """Kind and input shapes of forwards that found no room, with how often."""
    unfaithful: list[tuple[str, Shapes]] = field(default_factory=list)
    """Kind and input shapes of graphs whose first replay gave something else than forward does."""

    def of(self, kind: str) -> list[Captured]:
        return [each for each in self.captured if each.kind == kind]

    def without(self, kind: str) -> dict[Shapes, int]:
        """Return the input shapes that ran without a graph of a kind, with how often."""
        return {shapes: number for (of, shapes), number in self.uncaptured.items() if of == kind}


seen = Seen()
"""Of this process."""


class HPUGraph:
    """Ops that ran between `capture_begin` and `capture_end`, and `replay`, which runs them again on the same tensors."""

    def __init__(self, kind: str | None = "other") -> None:
        self.kind = kind
        self.number = 0
        self.ops = 0

    def capture_begin(self) -> None:
        self.number = device.load().capture_begin()

    def capture_end(self) -> None:
        self.ops = int(device.load().capture_end())
        if self.kind is not None:
            seen.captured.append(Captured(self.kind, forward_ops=self.ops))

    def replay(self, asynchronous: bool = False) -> None:
        device.load().replay(self.number)

    def reset(self) -> None:
        device.load().forget_capture(self.number)


@contextlib.contextmanager
def graph(captured: HPUGraph) -> Iterator[None]:
    """Capture what runs inside."""
    captured.capture_begin()
    try:
        yield
    finally:
        captured.capture_end()


class ModuleCacher:
    """Captures a training module's forward and backward for each set of inputs, for at most `max_graphs` of them.

    A set is known by its tensors' shapes and the values of everything else. Those that come later run uncaptured
    (use_lfu=False). An evaluation, and whatever needs no gradient, runs uncaptured.
    """

    def __init__(self, max_graphs: int = 10) -> None:
        self.max_graphs = max_graphs

    def __call__(
        self,
        model: torch.nn.Module,
        use_lfu: bool = False,
        inplace: bool = True,
        allow_unused_input: bool = False,
        asynchronous: bool = False,
        have_grad_accumulation: bool = False,
        log_frequency: int = 100,
        verbose: bool = False,
        disable_tensor_cache: bool = False,
        dry_run: bool = False,
    ) -> torch.nn.Module:
        if use_lfu or have_grad_accumulation:
            raise NotImplementedError("use_lfu and have_grad_accumulation are not rehearsed: optimum-habana leaves them out")
        module = model if inplace else copy.deepcopy(model)
        return _graphed(module, "training", self.max_graphs, functools.partial(_TrainingGraph, allow_unused_input=allow_unused_input))


def wrap_in_hpu_graph(
    module: torch.nn.Module,
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    dry_run: bool = False,
    max_graphs: int | None = None,
    free_inplace: bool = False,
    verbose: bool = False,
    log_frequency: int = 100,
) -> torch.nn.Module:
    """Return the module, whose forward is captured for each set of inputs, for inference; null `max_graphs` keeps them all."""
    return _graphed(module, "inference", max_graphs, _InferenceGraph)


def _graphed(
    module: torch.nn.Module, kind: str, max_graphs: int | None, capture: Callable[[torch.nn.Module, Callable[..., Any], _Inputs], Any]
) -> torch.nn.Module:
    """Give a module a forward that captures and replays."""
    original = module.forward
    known: dict[Hashable, Any] = {}

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() != (kind == "training") or module.training != (kind == "training"):
            return original(*args, **kwargs)
        inputs = _Inputs.of(args, kwargs)
        if inputs.key not in known:
            if max_graphs is not None and len(known) >= max_graphs:
                seen.uncaptured[kind, inputs.shapes] += 1
                return original(*args, **kwargs)
            known[inputs.key] = capture(module, original, inputs)
        return known[inputs.key](inputs.tensors)

    module.forward = forward
    return module


@dataclass
class _Inputs:
    """Arguments of a forward, tensors apart from the rest."""

    tensors: list[torch.Tensor]
    places: list[int]
    leaves: list[Any]
    spec: Any

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: dict[str, Any]) -> _Inputs:
        leaves, spec = pytree.tree_flatten((tuple(args), kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        return cls([leaves[i] for i in places], places, leaves, spec)

    @property
    def shapes(self) -> Shapes:
        return tuple(tuple(tensor.shape) for tensor in self.tensors)

    @property
    def key(self) -> Hashable:
        """What makes another graph: shapes and dtypes, other arguments by value, and autocast."""
        others = tuple(repr(leaf) for leaf in self.leaves if not isinstance(leaf, torch.Tensor))
        dtypes = tuple(tensor.dtype for tensor in self.tensors)
        return self.shapes, dtypes, str(self.spec), others, torch.is_autocast_enabled("hpu"), torch.get_autocast_dtype("hpu")

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with these tensors in the others' places."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


class _InferenceGraph:
    """A forward without gradients, of one set of inputs."""

    def __init__(self, module: torch.nn.Module, forward: Callable[..., Any], inputs: _Inputs) -> None:
        self.inputs = [tensor.detach().clone() for tensor in inputs.tensors]
        self.graph, self.check = (
            HPUGraph(None),
            FirstReplay(module, functools.partial(seen.unfaithful.append, ("inference", inputs.shapes))),
        )
        args, kwargs = inputs.with_tensors(self.inputs)
        host, self.again = HostRandomness(), lambda: forward(*args, **kwargs)
        with without_traces(module), graph(self.graph):
            self.outputs = Outputs(forward(*args, **kwargs))
        frozen = host.frozen(self.again, self.outputs, module)
        seen.captured.append(Captured("inference", inputs.shapes, self.graph.ops, frozen=frozen))

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Any:
        _copy_into(self.inputs, tensors)
        with self.check.against(self.again, self.outputs):
            self.graph.replay()
        return self.outputs.with_tensors([tensor.clone() for tensor in self.outputs.tensors])


class _TrainingGraph:
    """A forward and its backward, of one set of inputs."""

    def __init__(self, module: torch.nn.Module, forward: Callable[..., Any], inputs: _Inputs, *, allow_unused_input: bool) -> None:
        self.inputs = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs.tensors]
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.forward_graph, self.backward_graph = HPUGraph(None), HPUGraph(None)
        self.check = FirstReplay(module, functools.partial(seen.unfaithful.append, ("training", inputs.shapes)))
        args, kwargs = inputs.with_tensors(self.inputs)
        host, self.again = HostRandomness(), lambda: forward(*args, **kwargs)
        with without_traces(module):
            with graph(self.forward_graph):
                self.outputs = Outputs(forward(*args, **kwargs))
            self.differentiable = [tensor for tensor in self.outputs.tensors if tensor.requires_grad]
            self.output_gradients = [torch.zeros_like(tensor) for tensor in self.differentiable]
            with graph(self.backward_graph):
                self.gradients = torch.autograd.grad(
                    self.differentiable,
                    [*(tensor for tensor in self.inputs if tensor.requires_grad), *self.parameters],
                    self.output_gradients,
                    allow_unused=allow_unused_input,
                )
        frozen = host.frozen(self.again, self.outputs, module)
        counted = self.forward_graph.ops, self.backward_graph.ops
        seen.captured.append(Captured("training", inputs.shapes, *counted, frozen))

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Any:
        return self.outputs.with_tensors(_Replay.apply(self, len(tensors), *tensors, *self.parameters))


class _Replay(torch.autograd.Function):  # type: ignore[misc]
    """Stands in autograd's graph for what was captured."""

    @staticmethod
    def forward(ctx: Any, captured: _TrainingGraph, num_inputs: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.captured = captured
        _copy_into(captured.inputs, tensors[:num_inputs])
        with torch.enable_grad(), captured.check.against(captured.again, captured.outputs):
            captured.forward_graph.replay()
        outputs = tuple(tensor.detach().clone() for tensor in captured.outputs.tensors)
        fixed = [out for out, tensor in zip(outputs, captured.outputs.tensors, strict=True) if not tensor.requires_grad]
        ctx.mark_non_differentiable(*fixed)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        captured: _TrainingGraph = ctx.captured
        wanted = [g for g, tensor in zip(gradients, captured.outputs.tensors, strict=True) if tensor.requires_grad]
        _copy_into(captured.output_gradients, wanted)
        captured.backward_graph.replay()
        # copies: autograd would keep a gradient as the parameter's .grad, which the next replay writes over
        given = iter(None if g is None else g.detach().clone() for g in captured.gradients)
        to_inputs = [next(given) if tensor.requires_grad else None for tensor in captured.inputs]
        return None, None, *to_inputs, *given


def _copy_into(places: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
