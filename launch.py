"""Compose -> typed config -> checks -> run record -> workers. `python launch.py --help` explains the configuration."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from asr import composition, experiment, runs, stops, submission
from asr.errors import AsrError, ConfigError, JobError


@hydra.main(version_base=composition.VERSION_BASE, config_path="conf", config_name="config")
def run(composed: DictConfig) -> float | None:
    """Hydra's task: run one experiment; returns the metric that a sweep optimises."""
    settings = HydraConfig.get()
    sweeps = settings.mode == RunMode.MULTIRUN
    overrides = list(settings.overrides.task)
    container = composition.with_absolute_paths(composition.to_container(composed), Path(settings.runtime.cwd))
    with submission.job(settings.runtime.output_dir):
        code, done = experiment.start(container, Path(settings.runtime.output_dir), overrides=overrides, in_child=sweeps)
        if code and sweeps:
            raise JobError(settings.runtime.output_dir, code)  # Hydra goes on with the other jobs and raises it at the end
    if code:
        sys.exit(code)
    if done is None:  # another server's run
        return None
    from asr.report import show_end

    show_end(done)
    return done.metrics.get("eval_wer")


def check(asked: composition.CommandLine) -> None:
    """Raise ConfigError for whatever is wrong with the configuration, before Hydra makes a directory."""

    def compose(overrides: Sequence[str]) -> DictConfig:
        return composition.compose(overrides, conf=asked.conf, config_name=asked.config_name, with_hydra=True)

    if not asked.jobs:
        return  # --cfg, --info and the like
    jobs = [compose(overrides) for overrides in asked.jobs]
    multirun = composition.ready_multirun(asked, jobs[0])
    submitted = multirun and submission.is_submitted(jobs[0])
    shared = compose(asked.shared) if submitted and asked.shared != asked.jobs[0] else jobs[0]
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    for composed in jobs:
        pipeline = experiment.Pipeline.of(composition.to_container(composed))
        if submitted:
            submission.check(composed, pipeline.topology, shared=shared, dry_run=pipeline.dry_run)
        if pipeline.dry_run:
            warn_of(composition.to_container(composed))
            pipeline.launches(Path())
        else:
            pipeline.check_compatible(here=not submitted)
            pipeline.check_reachable(here=not submitted)
        if pipeline.topology.started_on_each_node and not multirun:
            composition.check_names_one_folder(composed, key)
        if submitted or pipeline.node == 0:
            runs.check_can_hold_run(Path(OmegaConf.select(composed, key)), key=key)
    if submitted:
        submission.prepare_environment()


def warn(asked: composition.CommandLine) -> None:
    """Say on stderr what would refuse a launch of the configuration that Hydra is about to show."""
    for overrides in asked.jobs:
        composed = composition.compose(overrides, conf=asked.conf, config_name=asked.config_name)
        try:
            warn_of(composition.to_container(composed))
        except ConfigError as error:  # a value that is missing is shown as ???
            print(f"warning: {error}", file=sys.stderr)


def warn_of(container: dict[str, Any]) -> None:
    for problem in experiment.warnings_of(container):
        print(f"warning: {problem}", file=sys.stderr)


def main() -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of ending Hydra with exit code 1
    try:
        asked = composition.read_command_line(sys.argv[1:])
        if asked.action == "help":
            print(composition.help_text())
            return 0
        if asked.action == "show":
            warn(asked)
        else:
            check(asked)
        with composition.explained(sys.argv[1:], asked.conf), submission.reported():
            run()
    except AsrError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return mistake.exit_code
    except (KeyboardInterrupt, stops.Terminated) as stop:
        return stops.ended_by(stop).exit_code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
