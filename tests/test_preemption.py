"""asr.preemption: why ranks end, the step at which all of them do, and what they say."""

import signal
from types import SimpleNamespace

import pytest

from asr import stops
from asr.preemption import Preemption, last_checkpoint
from asr.stops import Asked, Preempted


@pytest.fixture(autouse=True)
def process(monkeypatch):
    """As in a process that has heard nothing yet; what it hears stays with this test."""
    monkeypatch.setattr(stops, "_process", stops._Process())


class Clocks:
    """The time of day and a monotonic clock, which a test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.time, self.monotonic = now, 50.0

    def pass_by(self, seconds: float) -> None:
        self.time += seconds
        self.monotonic += seconds


def rank(run_dir, *, started=0.0, max_hours=None, clocks=None):
    clocks = clocks or Clocks()
    trainer = SimpleNamespace(control=SimpleNamespace(should_save=False))
    reads = {"clock": lambda: clocks.monotonic, "now": lambda: clocks.time}
    return Preemption(trainer, Asked(), run_dir, started=started, max_hours=max_hours, **reads)


def agree(*ranks) -> None:
    total = sum(rank.count() for rank in ranks)
    for one in ranks:
        one.act(total)


def said_by(rank, step=7) -> str:
    with pytest.raises(Preempted) as end:
        rank.saved(step)
    assert stops.ended_by(end.value) == stops.End(75, end.value.message)
    return end.value.message


def test_one_rank_s_signal_saves_on_all(tmp_path):
    ranks = [rank(tmp_path) for _ in range(3)]
    agree(*ranks)
    assert not any(r.wanted or r.trainer.control.should_save for r in ranks)
    ranks[1].asked.number = signal.SIGUSR1
    agree(*ranks)
    assert all(r.wanted and r.trainer.control.should_save for r in ranks)
    expected = f"preempted (SIGUSR1) after step 7, which is saved; resume=auto goes on from there, or `asr resume {tmp_path}`"
    assert {said_by(r) for r in ranks} == {expected}


def test_the_time_limit_counts_from_the_session_s_start(tmp_path):
    """The rank began 1000 s after its parent; setting the computer's clock changes nothing."""
    clocks = Clocks(now=1000.0)
    alone = rank(tmp_path, max_hours=0.5, clocks=clocks)
    clocks.pass_by(799)
    clocks.time += 86400
    agree(alone)
    assert not alone.wanted
    clocks.pass_by(1)
    agree(alone)
    assert alone.wanted
    assert said_by(alone).startswith("preempted (trainer.max_hours=0.5) after step 7")


def test_all_reasons_are_named_whoever_has_them(tmp_path):
    clocks = Clocks()
    late = rank(tmp_path, max_hours=0.1, clocks=clocks)
    others = [rank(tmp_path, max_hours=1) for _ in range(40)]
    clocks.pass_by(400)
    for one in others:
        one.asked.number = signal.SIGTERM
    others[0].asked.number = signal.SIGUSR2
    agree(late, *others)
    assert late.reasons == others[5].reasons == ["SIGTERM", "SIGUSR2", "trainer.max_hours"]


def test_without_a_limit_time_is_never_over(tmp_path):
    clocks = Clocks()
    alone = rank(tmp_path, clocks=clocks)
    clocks.pass_by(1e9)
    assert alone.count() == 0


def test_a_step_that_can_t_be_saved_names_what_there_is(tmp_path):
    alone = rank(tmp_path)
    alone.asked.number = signal.SIGTERM
    agree(alone)
    with pytest.raises(Preempted) as end:
        alone.not_saved(12, "No space left on device")
    assert "step 12, which can't be saved (No space left on device); there is no checkpoint, so it begins anew;" in end.value.message
    for name in ("checkpoint-4", "checkpoint-10", "damaged-checkpoint-11", ".saving"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert last_checkpoint(tmp_path) == 10
    with pytest.raises(Preempted) as end:
        alone.not_saved(12, "No space left on device")
    assert "; the last checkpoint is that of step 10; " in end.value.message


def test_nothing_that_catches_errors_swallows_it(tmp_path):
    alone = rank(tmp_path)
    with pytest.raises(Preempted):
        try:
            alone.saved(1)
        except Exception:  # noqa: BLE001
            pytest.fail("swallowed")
