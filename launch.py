"""Compose -> typed config -> checks -> run record -> workers. `python launch.py --help` explains the configuration."""

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from asr import command_line, composition, config_files, experiment, explanations, parallel, preflight, stops, submission, sweeps
from asr.errors import AsrError
from asr.rehearsal import start as rehearsal
from asr.secrets import redacted


@hydra.main(version_base=config_files.VERSION_BASE, config_path="conf", config_name="config")
def run(composed: DictConfig) -> float | None:
    """Hydra's task: run one experiment; returns the metric that a sweep optimises."""
    settings = HydraConfig.get()
    run_dir = Path(settings.runtime.output_dir)
    overrides = list(settings.overrides.task)
    container = composition.with_absolute_paths(composition.to_container(composed), Path(settings.runtime.cwd))
    records = not (container["dry_run"] or container["rehearse"])
    jobs = submission.job(str(run_dir)), parallel.job(str(run_dir)), sweeps.job(settings, run_dir, records=records)
    with jobs[0], jobs[1], jobs[2] as job:
        if submission.is_requeued(str(run_dir)):
            container["resume"] = "auto"
        begin = rehearsal.start if container["rehearse"] else experiment.start
        code, done = begin(
            container,
            run_dir,
            overrides=overrides,
            in_child=settings.mode == RunMode.MULTIRUN,
            named=submission.in_job() or composition.names_folder(settings),
            **({"shared": job.shared} if job.shared else {}),
        )
        job.ended(code, done)  # raises for one that ended badly: Hydra goes on with the others and raises it at the end
    if code:
        sys.exit(code)
    if done is None:  # another server's run
        return None
    from asr.report import show_end, show_job

    (show_job if settings.mode == RunMode.MULTIRUN else show_end)(done)
    return done.metrics.get("eval_wer")


def show_sweep(sweep: sweeps.Sweep) -> None:
    from asr.sweep_report import show_end

    show_end(sweep)


def main() -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of ending Hydra with exit code 1
    try:
        stops.listen()
        if submission.is_requeued() and not any(word.lstrip("+").startswith("resume=") for word in sys.argv[1:]):
            sys.argv.append("resume=auto")
        asked = command_line.read_command_line(sys.argv[1:])
        if asked.action == "help":
            print(command_line.help_text())
            return 0
        sweep = None
        if asked.action == "show":
            preflight.warn(asked)
        else:
            sweep = preflight.check(asked)
        with (
            sweeps.recorded(sweep, asked.overrides, show_sweep),
            explanations.explained(sys.argv[1:], asked.conf),
            explanations.hydra_s_part(run.__wrapped__),
            submission.reported(),
            parallel.listening(),
        ):
            run()
    except AsrError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return mistake.exit_code
    except (KeyboardInterrupt, stops.Terminated) as stop:
        return stops.ended_by(stop).exit_code
    except Exception:
        print(redacted(traceback.format_exc()), file=sys.stderr, end="")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
