"""Runs stopped at any moment go on as if nothing had been. What forks runs is in stopped.py, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

HERE = Path(__file__).parent


def in_its_own_process(*options: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([*command, str(HERE / "stopped.py")], capture_output=True, text=True, env=environment, timeout=1500, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_runs_that_are_stopped():
    in_its_own_process("-m", "not slow")


@pytest.mark.slow
def test_runs_that_are_stopped_at_each_of_their_steps():
    in_its_own_process("-m", "slow")
