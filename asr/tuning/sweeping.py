"""A sweep whose jobs Optuna chooses: trials asked for, run by a launcher, and told what they came to.

In: the composed configuration, a launcher and the command line's overrides. Out: jobs, optimization_results.yaml, and the first
failed job's error at the end. Trials that a stop left running are run again under their number, so that their runs go on.
"""

from __future__ import annotations

import json
import logging
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from asr import runs, stops
from asr.errors import ConfigError, JobError, TrainingError
from asr.tuning import settings, space, studies

log = logging.getLogger(__name__)

RESULTS_FILE = "optimization_results.yaml"
FEWEST = 4
"""Trials that a failure rate is taken of at least: one bad job is no reason to stop."""
STOPPED = (stops.PREEMPTED, 130, *(128 + number for number in (signal.SIGHUP, signal.SIGTERM)))
"""Exit codes of jobs that were stopped from outside, and go on when the sweep does."""


def sweep(composed: DictConfig, launcher: Launcher, loader: ConfigLoader, arguments: Sequence[str]) -> list[JobReturn]:
    """Run what is left of a sweep, and return its jobs of this session; raise the error of the first that failed."""
    studies.require()
    asked = settings.read(composed)
    parameters, fixed = space.read(asked.params, arguments, loader)
    space.check(parameters)
    folder = Path(str(composed.hydra.sweep.dir))
    layout: Any = OmegaConf.to_container(composed.hydra.sweep, resolve=False)
    by_number = layout["subdir"] == "${hydra.job.num}"
    runs.configure_logging(None)
    resumes = composed.get("resume") == "auto"
    with studies.opened(asked, folder, parameters, fixed, resumes=resumes, named_by_number=by_number) as study:
        return _Sweep(study, launcher, folder, fixed, settings.jobs_at_once(composed, asked)).run()


@dataclass
class _Sweep:
    study: studies.Study
    launcher: Launcher
    folder: Path
    fixed: Sequence[str]
    at_once: int
    jobs: dict[int, JobReturn] = field(default_factory=dict)
    """Of this session, by trial."""
    failed: int = 0
    """Trials of this session that have."""
    taken_up: frozenset[int] = frozenset()
    """Trials that an earlier session left unfinished."""

    def run(self) -> list[JobReturn]:
        self._say_what_is_there()
        for batch in self._batches():
            for numbers in _consecutive(batch):
                overrides = [[*self.fixed, *self.study.overrides(number)] for number in numbers]
                done = self.launcher.launch(overrides, initial_job_idx=numbers[0])
                runs.configure_logging(None)  # a job in this process leaves its own log open
                for number, job in zip(numbers, done, strict=True):
                    self._ended(number, job)
            self._write_results()
            if self._fails_too_often():
                break
        self._raise_failure()
        return list(self.jobs.values())

    def _say_what_is_there(self) -> None:
        left = self.study.numbers("RUNNING")
        self.taken_up = frozenset(left)
        there, wanted = len(self.study.trials), self.study.settings.n_trials
        if there:
            unfinished = f"; unfinished: {', '.join(map(str, left))}" if left else ""
            log.warning("the sweep in %s goes on: %d of %d trials are there%s", self.folder, there, wanted, unfinished)

    def _batches(self) -> Iterator[list[int]]:
        """Yield the numbers of trials to run together: those left unfinished first."""
        left = sorted(self.taken_up)
        while True:
            batch, left = left[: self.at_once], left[self.at_once :]
            while len(batch) < self.at_once and len(self.study.trials) < self.study.settings.n_trials:
                batch.append(self.study.ask())
            if not batch:
                return
            yield sorted(batch)

    def _ended(self, number: int, job: JobReturn) -> None:
        """Tell the study what a trial came to. One that was stopped from outside, or can't be taken up as it is, stays unfinished."""
        self.jobs[number] = job
        if job.status == JobStatus.COMPLETED:
            value = _finite(job.return_value)
            if value is None:
                log.warning("trial %d failed: eval_wer is %s", number, job.return_value)
        else:
            value, error = None, job._return_value  # `return_value` raises it (hydra 1.3, core/utils.py:265)
            code = getattr(error, "exit_code", 1)
            if code in STOPPED or (code == ConfigError.exit_code and number in self.taken_up):
                log.warning("trial %d is unfinished: %s", number, error)
                return
            log.warning("trial %d failed: %s", number, error)
        self.failed += value is None
        self.study.tell(number, value)
        if value is not None:
            best = self.study.best
            assert best is not None
            log.info(
                "trial %d: eval_wer %.4g with %s; the best is %.4g of trial %d", number, value, self._shown(number), best.value, best.number
            )

    def _shown(self, number: int) -> str:
        """Return a trial's values to be read; the exact ones are in its run and in the study."""
        chosen = self.study.trial(number).params.items()
        return " ".join(f"{key.rpartition('.')[2]}={f'{value:.4g}' if isinstance(value, float) else value}" for key, value in chosen)

    def _fails_too_often(self) -> bool:
        rate = self.study.settings.max_failure_rate
        if self.failed <= rate * max(len(self.jobs), FEWEST):
            return False
        log.error(
            "%d of %d trials failed, more than hydra.sweeper.max_failure_rate=%g allows: the sweep stops", self.failed, len(self.jobs), rate
        )
        return True

    def _write_results(self) -> None:
        if self.study.best is not None:
            runs.write_text(self.folder / RESULTS_FILE, yaml.safe_dump(self.study.results(), sort_keys=False, allow_unicode=True))

    def _raise_failure(self) -> None:
        """Raise the error of the first trial that has failed or is unfinished, of an earlier session too: the sweep isn't whole."""
        for number in sorted({*self.study.numbers("FAIL"), *self.study.numbers("RUNNING")}):
            job = self.jobs.get(number)
            if job is None:
                self._raise_earlier(number)
            elif job.status != JobStatus.COMPLETED:
                _ = job.return_value  # says which job it was, and raises its error
        if self.study.best is None:
            raise TrainingError(f"no trial in {self.folder} has a WER: {RESULTS_FILE} isn't written.")

    def _raise_earlier(self, number: int) -> None:
        """Raise for a trial that failed in an earlier session, unless its job had ended well and had no value."""
        folder = self.study.jobs / str(number) if self.study.jobs else None
        if folder is None:
            raise JobError(f"trial {number} of {self.folder}", 1)
        try:
            code = json.loads((folder / runs.RUN_FILE).read_text(encoding="utf-8")).get("exit_code")
        except (OSError, ValueError):  # a configuration that is refused leaves no run
            code = ConfigError.exit_code
        if code != 0:
            raise JobError(folder, code or 1)  # null: its end was never recorded


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _consecutive(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Yield runs of numbers that follow each other: a launcher counts its jobs up from the first.

    >>> list(_consecutive([1, 2, 5]))
    [[1, 2], [5]]
    """
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run
