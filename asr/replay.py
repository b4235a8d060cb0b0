"""A run from its own directory, rather than from what Hydra composes: gone on with, or run again.

In: a run directory. Out: what a launch of its configuration gives. The directory may be a stranger's: asr.trust says what it may do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from asr import circumstances, composition, config, experiment, runs, sessions, trust
from asr.errors import ConfigError
from asr.pipeline import Pipeline
from asr.runs import Run


def resume(run_dir: Path, *, allowed: Sequence[str] = ()) -> tuple[int, Run]:
    """Go on with a run and return its exit code and itself; raise ConfigError for what is no run, or can't go on here."""
    run_dir = run_dir.resolve()
    found = Run.load(run_dir)
    composed = {**trust.config_of(found, allowed), "resume": "auto"}
    pipeline = Pipeline.of(composed)
    if pipeline.topology.started_on_each_node:
        raise ConfigError(
            f"{run_dir} runs on {pipeline.topology.num_nodes} servers: start `python launch.py {' '.join(_overrides(found))} "
            f"hydra.run.dir={run_dir} resume=auto` on each.",
            key="topology.num_nodes",
        )
    sessions.check(composed, run_dir, key="run directory")
    if found.record.get("status") != "finished":
        pipeline.check_compatible()
        pipeline.check_reachable()
        pipeline.check_host()
    code, run = experiment.start(composed, run_dir, overrides=_overrides(found), in_child=False)
    assert run is not None, "there is one server"
    return code, run


def again(
    run_dir: Path, overrides: Sequence[str] = (), *, allowed: Sequence[str] = (), into: Path | None = None, other_data: bool = False
) -> tuple[int, Run | None]:
    """Run a run's configuration again, with overrides over it, in a directory of its own; return as asr.experiment.start does.

    Raises ConfigError, with nothing written, for a configuration that isn't to be trusted or can't run here. `other_data` goes on
    where the data isn't what it was; otherwise the replay ends as bad data, before it trains.
    """
    run_dir = run_dir.resolve()
    found = Run.load(run_dir)
    before = trust.config_of(found, [*allowed, "publish"])  # a replay publishes only where an override says so
    if found.record.get("rehearsal") or before.get("rehearse"):
        raise ConfigError(f"{run_dir} holds a rehearsal, which trained nothing; name a run.", key="run directory")
    config.instantiate(before)
    composed = _changed(before, overrides, allowed)
    pipeline = Pipeline.of(composed)
    if into is None:
        into = _folder_for(pipeline)
    into = into.resolve()
    runs.check_can_hold_run(into, key="--into")
    if not pipeline.dry_run:
        pipeline.check_compatible()
        pipeline.check_reachable()
        pipeline.check_host()
    replay_of = {
        "path": str(run_dir),
        "config_sha256": found.record.get("config_sha256"),
        "status": found.record.get("status"),
        "overrides": list(overrides),
        "differences": [
            *circumstances.in_circumstances(found.record, runs.here()),
            *circumstances.in_configuration(before, composed),
            *_unknown(found),
        ],
        "data": circumstances.data_of(found.record),
        "takes_other_data": other_data,
    }
    code, run = experiment.start(composed, into, overrides=[*_overrides(found), *overrides], in_child=False, replay_of=replay_of)
    if run is not None and not code and not pipeline.dry_run:
        differing = circumstances.in_metrics(circumstances.metrics_of(found), run.metrics)
        run.save(replay_of={**run.record["replay_of"], "other_metrics": differing})
    return code, run


def _changed(before: Mapping[str, Any], overrides: Sequence[str], allowed: Sequence[str]) -> dict[str, Any]:
    """Return what is run: the run's configuration, less what is about its own directory, with the user's overrides."""
    composed = {**before, "resume": "never", "publish": False}
    if not overrides:
        return composed
    composed = composition.overridden(composed, overrides)
    trust.check_targets(composed, allowed)
    for key in ("resume", "rehearse"):
        if composed[key] not in ("never", False):
            mend = "`asr resume FOLDER` goes on with a replay" if key == "resume" else "python launch.py rehearses"
            raise ConfigError(f"is not for a replay, which begins anew and trains; {mend}.", key=key)
    config.instantiate(composed)
    return composition.with_absolute_paths(composed, Path.cwd())


def _folder_for(pipeline: Pipeline) -> Path:
    """Return where a launch would put the run by default; raise ConfigError where several servers need one that they share."""
    if pipeline.topology.started_on_each_node:
        raise ConfigError("is missing: name a folder that the servers share, and replay the run into it on each.", key="--into")
    return Path("outputs") / pipeline.experiment_name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"


def _unknown(run: Run) -> list[str]:
    """Return what a replay can't be compared with, because the run doesn't have it."""
    said = [] if circumstances.metrics_of(run) else ["the run has no metrics to compare with"]
    data = circumstances.data_of(run.record)
    if not data:
        said.append("the run doesn't say what data it had")
    elif not all(split.get("fingerprint") for split in data.values()):
        said.append("the run has no fingerprints of its data: utterances and hours are compared")
    return said


def _overrides(run: Run) -> list[str]:
    given = run.record.get("overrides")
    return [word for word in given if isinstance(word, str)] if isinstance(given, list) else []
