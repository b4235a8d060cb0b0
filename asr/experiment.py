"""The story of a run: prepare, train, evaluate, report.

In: a checked configuration. Out: a run directory. The parent prepares the manifest and the vocabulary and
writes them down; the worker, this process or a child of it, reads them and never preprocesses.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asr import (
    checkpoints,
    circumstances,
    leases,
    model_card,
    nodes,
    preparing,
    publishing,
    run_report,
    runs,
    sessions,
    stages,
    stops,
    submission,
    supervision,
    topology,
)
from asr.errors import AsrError, ConfigError, PublishError, said_by
from asr.pipeline import Pipeline
from asr.runs import Run
from asr.stops import End, Terminated, ended_by

log = logging.getLogger(__name__)


NODE_S_OWN = ("topology.node_rank", "topology.join_seconds", "topology.shown_ranks", "topology.threads_per_rank")
"""Keys that differ between the servers of a run."""


NO_LEASE = leases.Lease()

Judge = Callable[[Run, End], End]
"""What looks at how the workers of a run ended, before that is recorded, and says how it ends."""


def start(
    composed: Mapping[str, Any],
    run_dir: Path,
    *,
    overrides: Sequence[str],
    in_child: bool,
    before: Callable[[], object] | None = None,
    judge: Judge | None = None,
    named: bool = True,
    shared: Path | None = None,
    replay_of: Mapping[str, Any] | None = None,
) -> tuple[int, Run | None]:
    """Run an experiment in `run_dir`, or go on with one, and return its exit code and, on the first server, the run.

    Several processes, and a sweep's job, are children of this one. On a server that isn't the first, the run is
    the first one's: it prepares, and records the end. `before` is done before anything is prepared. `named`: a user
    chose `run_dir`; otherwise resume=auto looks for a run of this configuration beside it. `shared`: where a sweep's jobs find
    what one of them has prepared. `replay_of`: what is known of the run that this one replays; run.json keeps it, so that a
    resumed replay is held to it too.
    """
    try:
        pipeline = Pipeline.of(composed)
    except ConfigError:
        with contextlib.suppress(OSError):
            run_dir.rmdir()  # Hydra has made it
        raise
    if pipeline.node:
        return _take_part(pipeline, composed, run_dir)
    command = [sys.executable, *sys.argv]
    run, unfinished = sessions.open_run(composed, run_dir, named=named, command=command, overrides=overrides)
    if not unfinished:
        return 0, run
    if replay_of is not None:
        run.save(replay_of=dict(replay_of))
    try:
        return _session(pipeline, run, in_child=in_child, before=before, judge=judge, shared=shared), run
    finally:
        sessions.let_go(run.path)


def _session(
    pipeline: Pipeline, run: Run, *, in_child: bool, before: Callable[[], object] | None, judge: Judge | None, shared: Path | None
) -> int:
    """Work on a run that this process holds, and return the exit code."""
    runs.configure_logging(run.path)
    if "replay_of" in run.record:
        circumstances.say(run)
    if pipeline.dry_run:
        run.end_dry([launch.describe() for launch in pipeline.launches(run.path)])
        return 0

    def story() -> End:
        pipeline.check_host()  # a submitted job meets its machine here
        if before:
            before()
        if "dataset" in run.record:
            log.info("data: as the run's first session prepared it")
        else:
            preparing.prepare(pipeline, run, shared)
        if "replay_of" in run.record:
            circumstances.check_data(run)
        if not pipeline.works:
            return End()
        _find_checkpoint(run)
        with _devices(pipeline, run) as lease:
            if in_child or pipeline.topology.has_launcher:
                end = _supervised(pipeline, run, lease)
                return judge(run, end) if judge else end
            with leases.applied(lease):
                pipeline.topology.apply_environment()
                stages.work(run)
        return End()

    code = guarded(run, story)
    if code or not (run.path / runs.MODEL_FOLDER).is_dir() or pipeline.rehearse:
        return code
    _write_card(run)
    return _publish(pipeline, run) if pipeline.publish else code


def _write_card(run: Run) -> None:
    """Describe the model beside it; a card that can't be written spoils no run."""
    try:
        model_card.write(run, run.path / runs.MODEL_FOLDER)
    except Exception as error:
        log.warning("the model's card can't be written: %s: %s", type(error).__name__, " ".join(str(error).split()))


def _publish(pipeline: Pipeline, run: Run) -> int:
    """Push the model of a run that has finished; where that fails, the run stays finished and the launch says it."""
    args = pipeline.trainer.args
    try:
        publishing.publish(run, args["hub_model_id"], private=args.get("hub_private_repo"))
    except PublishError as error:
        log.error("error: %s", error)
        return error.exit_code
    return 0


@contextlib.contextmanager
def _devices(pipeline: Pipeline, run: Run) -> Iterator[leases.Lease]:
    """Hold the devices that a run computes on, recorded; a rehearsal's is a stand-in."""
    if pipeline.rehearse:
        yield leases.Lease()
        return
    with leases.leased(pipeline.topology, run.path) as lease:
        if lease.ids:
            waited = (
                {} if lease.waited_seconds < 1 else {"session_started_at": time.time()}
            )  # trainer.max_hours is for work, not for waiting
            run.save(devices=lease.describe(), **waited)
        yield lease


def _find_checkpoint(run: Run) -> None:
    """Record which checkpoint the workers go on from; every file of it is read and compared with what was written."""
    found = checkpoints.newest_good(run.path / runs.CHECKPOINTS)
    if found:
        log.info("training goes on after step %d (%s)", found.step, found.path.name)
        run.save(resumed_from=found.path.name)
    elif run.record["sessions"]:
        log.warning("%s holds no checkpoint to go on from: training begins anew", run.path)


def _supervised(pipeline: Pipeline, run: Run, lease: leases.Lease = NO_LEASE) -> End:
    """Work in processes of their own, on this server."""
    where, node = pipeline.topology, pipeline.node
    launch = pipeline.launch(run.path, node)
    for replaced in topology.set_over_shell(launch.environment):
        log.warning("%s", replaced)
    launch = replace(launch, environment={**launch.environment, **(lease.environment or {})})
    log.info("starting %d processes: %s", where.processes_here, launch)
    if node == 0:
        run.save(launch=launch.describe())
    return supervision.supervise(launch, run.path, where, node=node)


def _take_part(pipeline: Pipeline, composed: Mapping[str, Any], run_dir: Path) -> tuple[int, None]:
    """Join a run that server 0 prepares."""
    stops.listen()
    runs.configure_logging(None)
    try:
        nodes.wait_for_run(run_dir, pipeline.topology, resumes=pipeline.resume == "auto")
        run = Run.load(run_dir)
        if run.record["status"] == "finished":
            log.warning("%s has finished: there is nothing to resume", run_dir)
            return 0, None

        def story() -> End:
            runs.check_same_config(run, composed, except_for=NODE_S_OWN)
            pipeline.check_host()
            return _supervised(pipeline, run)

        end = explained(story, run_dir)
    except (KeyboardInterrupt, Terminated) as stop:
        log.error("%s", ended_by(stop).error)
        raise
    if end.exit_code == stops.PREEMPTED:
        log.error("%s", end.error)
    elif end.exit_code:
        log.error("error: %s", end.error)
        nodes.say_failed(run_dir, pipeline.topology, pipeline.node, end.exit_code)
    return end.exit_code, None


def guarded(run: Run, story: Callable[[], End]) -> int:
    """Tell the story, record its end in run.json whatever it is, and return the exit code of the contract.

    Ctrl-C and a signal that ends the process are recorded and raised again, as is a training's end as preempted; `stops.ended_by`
    has their exit codes.
    """
    stops.listen()
    try:
        end = explained(story, run.path)
    except (KeyboardInterrupt, Terminated) as stop:
        end = ended_by(stop)
        log.error(*([end.error] if isinstance(stop, stops.Preempted) else ["%s; what is in %s stays", end.error, run.path]))
        _record(run, end)
        _report(run)
        raise  # past Hydra, so that a sweep stops too
    if end.exit_code == stops.PREEMPTED:
        log.error("%s", end.error)
    elif end.exit_code:
        log.error("error: %s", end.error)
    others_read_it = run.record["topology"]["num_nodes"] > 1 or submission.in_job()
    is_new = not run.has_weights and not run.record["sessions"]
    if end.exit_code == ConfigError.exit_code and is_new and not others_read_it:
        run.discard()  # what a configuration names is loaded before training: exit code 2 leaves nothing behind
    elif not _record(run, end):
        return end.exit_code or 1
    else:
        _report(run)
    return end.exit_code


def _record(run: Run, end: End) -> bool:
    """Write into run.json how it ended; False, with the reason logged, where the folder has gone or can't be written."""
    try:
        run.reload()  # the workers have written what they found out
        run.finish(end.exit_code, end.error)
    except (OSError, ConfigError) as error:
        log.error("how the run ended can't be recorded in %s: %s", run.path, error)
        return False
    return True


def _report(run: Run) -> None:
    """Write the page of a run that has ended; a failure of that is no failure of the run."""
    if run.record.get("rehearsal"):
        return
    try:
        run_report.write(run)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("%s can't be written (%s); the run is as it is, and `asr report` tries again", run.path / runs.PAGE_FILE, why)


def explained(story: Callable[[], End], run_dir: Path) -> End:
    """Tell a story, and return its end whatever it is: a user's mistake with its message, anything else with its traceback logged."""
    try:
        return story()
    except AsrError as mistake:
        return End(mistake.exit_code, said_by(mistake))
    except (Exception, SystemExit) as unexpected:  # a library that gives up
        log.error("unexpected failure; please report it with %s\n%s", run_dir / runs.LOG_FILE, traceback.format_exc())
        return End(1, f"{type(unexpected).__name__}: {unexpected}")
