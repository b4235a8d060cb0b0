"""What is looked at before anything is written: each job of a command line, composed and checked.

In: a parsed command line. Out: a ConfigError with its key, or warnings for what is only shown.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from asr import command_line, composition, parallel, pipeline, runs, sessions, submission, sweeps
from asr.errors import ConfigError
from asr.pipeline import Pipeline
from asr.rehearsal import start as rehearsal
from asr.tuning import checking, settings


def check(asked: command_line.CommandLine) -> Path | None:
    """Raise ConfigError for whatever is wrong with the configuration, before Hydra makes a directory.

    Returns the folder of a sweep that is to be recorded, which Hydra is told of.
    """

    def compose(overrides: Sequence[str]) -> DictConfig:
        return composition.compose(overrides, conf=asked.conf, config_name=asked.config_name, with_hydra=True)

    if not asked.jobs:
        return None  # --cfg, --info and the like
    first = compose(asked.jobs[0])
    multirun = command_line.ready_multirun(asked, first)
    jobs = asked.jobs
    if multirun and settings.is_optuna(first):
        jobs = checking.overrides_to_check(first, asked.overrides, asked.conf)
    elif multirun:
        jobs = command_line.jobs_of_sweep(asked, first)
    if jobs[0] != asked.jobs[0]:
        first = compose(jobs[0])
    several = multirun and (len(jobs) > 1 or settings.is_optuna(first))
    submitted = multirun and submission.is_submitted(first)
    shared = compose(asked.shared) if submitted and asked.shared != jobs[0] else first
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    taken: set[str] = set()
    for composed in chain([first], map(compose, jobs[1:])):  # one at a time: what is wrong with all is said at the first
        described = Pipeline.of(composition.to_container(composed))
        if described.publish and several:
            raise ConfigError("each job would overwrite the model of the one before; publish the best: asr publish RUN.", key="publish")
        taken.add(composition.version_taken(composed))
        if described.topology.started_on_each_node and not multirun and not described.rehearse:
            composition.check_names_one_folder(composed, key)
        recorded = multirun and not described.dry_run and not described.rehearse  # its folder is looked at once
        if not recorded and (described.rehearse or described.node == 0):
            _check_folder(composed, described, key, multirun=multirun)
        if described.rehearse:
            rehearsal.check(composition.to_container(composed))
            described.check_reachable()
        elif described.dry_run:
            warn_of(composition.to_container(composed))
            described.launches(Path())
        else:
            described.check_compatible(on_this_host=not submitted)
            described.check_reachable()
        if submitted:
            submission.check(composed, described.topology, shared=shared, dry_run=described.dry_run)
        elif not described.dry_run and not described.rehearse:
            described.check_host()
        if parallel.is_parallel(composed):
            parallel.check(composed, described.topology)
    for version in sorted(filter(None, taken)):
        print(f"experiment: {version}, the newest version; name it to keep to it", file=sys.stderr)
    if submitted:
        submission.prepare_environment()
    elif parallel.is_parallel(first):
        parallel.prepare()
    return _sweep_folder(asked, compose(asked.shared) if asked.shared != jobs[0] else first) if multirun else None


def _sweep_folder(asked: command_line.CommandLine, shared: DictConfig) -> Path | None:
    """Return where a sweep is recorded, and tell Hydra of it: a new folder, or the one of the sweep that resume=auto goes on with.

    None for dry runs and rehearsals, which have nothing to go on with.
    """
    if shared.dry_run or shared.rehearse:
        return None
    folder = composition.folder_in(shared, sweeps.KEY)
    named = any(word.startswith(f"{sweeps.KEY}=") for word in asked.shared)
    resume = shared.resume == "auto"
    try:
        if resume and not named:
            folder = sweeps.newest_unfinished(folder.parent, asked.overrides) or folder
        sweeps.check(folder, asked.overrides, resume=resume)
    except OSError as error:  # such as a name too long to be looked up
        raise ConfigError(f"can't name a folder ({error.strerror}); choose another.", key=sweeps.KEY) from error
    if not named:
        sys.argv.append(command_line.override(sweeps.KEY, str(folder)))
    return folder.absolute()


def _check_folder(composed: DictConfig, described: Pipeline, key: str, *, multirun: bool) -> None:
    """Raise ConfigError for a folder that can neither hold the run nor, with resume=auto, holds one to go on with."""
    folder = composition.folder_in(composed, key)
    try:
        if described.resume == "never" or described.rehearse:
            runs.check_can_hold_run(folder, key=key)
        elif not multirun:  # a sweep's jobs are looked at one by one
            sessions.check(composition.to_container(composed), folder, key=key)
    except OSError as error:  # such as a name too long to be looked up
        raise ConfigError(f"can't name a folder ({error.strerror}); choose another.", key=key) from error


def warn(asked: command_line.CommandLine) -> None:
    """Say on stderr what would refuse a launch of the configuration that Hydra is about to show."""
    for overrides in asked.jobs:
        composed = composition.compose(overrides, conf=asked.conf, config_name=asked.config_name)
        try:
            warn_of(composition.to_container(composed))
        except ConfigError as error:  # a value that is missing is shown as ???
            print(f"warning: {error}", file=sys.stderr)


def warn_of(container: Mapping[str, Any]) -> None:
    """Say on stderr what would refuse a launch of one composed configuration."""
    for problem in pipeline.warnings_of(container):
        print(f"warning: {problem}", file=sys.stderr)
