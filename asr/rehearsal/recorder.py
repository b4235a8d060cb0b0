"""What a trainer's steps made the device do: graphs, host syncs, input shapes, losses, weights.

In: a trainer of ours on the stand-in device. Out: counts of what was recorded and captured while it trained and evaluated.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import TrainerCallback

from asr.rehearsal import device, graphs

STEP, UPDATE, EVALUATION, SCORING, BETWEEN = "step", "update", "evaluation", "scoring", "between"
"""Forward, loss and backward; what follows in the step (reducing, clipping, the optimizer); an evaluation's forward; its losses and
tokens; the rest."""
_IN_PLACE = (Path(torch.__file__).parent, Path(__file__).parent)


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Watches one trainer. Saves, and evaluates where the experiment does so on the way, in the middle of training."""

    def __init__(self, trainer: Any, *, evaluates: bool, in_the_middle: bool) -> None:
        self.trainer = trainer
        self.evaluates = evaluates
        self.in_the_middle = in_the_middle
        self.steps = 0
        self.saved_at = 0
        self.losses: list[float] = []
        self.weights: dict[str, torch.Tensor] = {}
        """On the host, after the latest step."""
        self.syncs: Counter[tuple[str, str]] = Counter()
        """Host syncs within steps: what asked for a value, and where."""
        self.captured_syncs: Counter[tuple[str, str]] = Counter()
        """The same within captures, which don't ask again."""
        self.first_syncs = 0
        """Host syncs of the first step."""
        self._losses: list[torch.Tensor] = []
        trainer.training_step = self._in_phase(STEP, trainer.training_step, after=UPDATE)
        trainer.prediction_step = self._in_phase(SCORING, trainer.prediction_step, after=BETWEEN)
        trainer.model.register_forward_pre_hook(self._before_forward)
        trainer.model.register_forward_hook(self._after_forward)
        trainer.add_callback(self)

    def _in_phase(self, name: str, work: Callable[..., Any], *, after: str) -> Callable[..., Any]:
        controls = device.load()

        def watched(*args: Any, **kwargs: Any) -> Any:
            controls.set_phase(name)
            given = work(*args, **kwargs)
            if name == STEP:
                self._losses.append(given.detach())
            controls.set_phase(after)
            return given

        return watched

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._watch = _SyncWatch(self.syncs, self.captured_syncs)
        self._watch.__enter__()

    def _before_forward(self, *_: Any) -> None:
        if device.load().get_phase() == SCORING:
            device.load().set_phase(EVALUATION)

    def _after_forward(self, *_: Any) -> None:
        if device.load().get_phase() == EVALUATION:
            device.load().set_phase(SCORING)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        device.mark_step()  # what setting up has left belongs to no step
        device.load().set_phase(BETWEEN)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self._watch.__exit__(None, None, None)
        device.load().set_phase(BETWEEN)
        self.steps += 1
        if self.steps == 1:
            self.first_syncs = device.events("sync", STEP, UPDATE).total()
        if self.in_the_middle and state.global_step == max(1, state.max_steps // 2):
            control.should_save, control.should_evaluate = True, self.evaluates
            self.saved_at = state.global_step
        self.weights = weights(self.trainer)  # before the best model is loaded in their place
        return control

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.losses = [float(loss.float().mean()) for loss in self._losses]


class _SyncWatch(TorchFunctionMode):  # type: ignore[misc]
    """Notes which line of Python asked for a value of the device."""

    def __init__(self, found: Counter[tuple[str, str]], captured: Counter[tuple[str, str]]) -> None:
        super().__init__()
        self.found, self.captured = found, captured

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        controls = device.load()
        before = controls.count_host_syncs()
        given = func(*args, **(kwargs or {}))
        asked = controls.count_host_syncs() - before
        if asked and controls.get_phase() in (STEP, UPDATE):
            found = self.captured if controls.is_capturing() else self.found
            found[getattr(func, "__name__", str(func)), _asked_by()] += asked
        return given


def _asked_by() -> str:
    """Return file and line of the code outside torch that is running, as package/file.py:line."""
    frame = sys._getframe(2)
    while frame.f_back is not None and any(Path(frame.f_code.co_filename).is_relative_to(place) for place in _IN_PLACE):
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    places = [Path(entry) for entry in sys.path if entry and path.is_relative_to(entry)]
    inside = path.relative_to(max(places, key=lambda place: len(place.parts))) if places else path
    return f"{inside}:{frame.f_lineno}"


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """Return copies of all parameters and buffers on the host."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between two sets of weights; not a number where either has one that isn't."""
    each = [(ours[name].double() - theirs[name].double()).abs().max() for name in ours if ours[name].numel()]
    return float(torch.stack(each).max()) if each else 0.0  # Python's max would pass over what is no number


def count_graphs(kind: str, phase: str) -> dict[str, int]:
    """Return how many graphs a phase had: captured by HPU graphs, recorded between two mark_steps, and run without a capture.

    `model` is the number that one would expect to be that of input shapes: captures where there are any, and otherwise
    the op sequences recorded.
    """
    captured, recorded = len(graphs.seen.of(kind)), len(device.graphs(phase))
    return {"captured": captured, "recorded": recorded, "model": captured + len(graphs.seen.without(kind)) if captured else recorded}
