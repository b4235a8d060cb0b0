"""A run from its own directory: the configuration that lies there, rather than one that Hydra composes.

In: a run directory. Out: what a launch of its configuration gives. YAML that comes from elsewhere makes objects of this
package's classes alone.
"""

from __future__ import annotations

from pathlib import Path

from asr import config, experiment, sessions
from asr.errors import ConfigError
from asr.pipeline import Pipeline
from asr.runs import Run


def resume(run_dir: Path) -> tuple[int, Run]:
    """Go on with a run and return its exit code and itself; raise ConfigError for what is no run, or can't go on here."""
    run_dir = run_dir.resolve()
    found = Run.load(run_dir)
    composed = {**found.config, "resume": "auto"}
    config.check_targets(composed)
    pipeline = Pipeline.of(composed)
    if pipeline.topology.started_on_each_node:
        raise ConfigError(
            f"{run_dir} runs on {pipeline.topology.num_nodes} servers: start `python launch.py {' '.join(found.record['overrides'])} "
            f"hydra.run.dir={run_dir} resume=auto` on each.",
            key="topology.num_nodes",
        )
    sessions.check(composed, run_dir, key="run directory")
    if found.record["status"] != "finished":
        pipeline.check_compatible()
        pipeline.check_reachable()
        pipeline.check_host()
    code, run = experiment.start(composed, run_dir, overrides=found.record["overrides"], in_child=False)
    assert run is not None, "there is one server"
    return code, run
