"""What a launcher's environment tells a rank; and collectives.py under torchrun, each of its checks a test here."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asr import launchers
from asr.rehearsal import hccl

SCRIPT = Path(__file__).with_name("collectives.py")
MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "gaudi-1", "MASTER_PORT": "7000"}


def test_a_process_that_nobody_launched_gets_nothing():
    assert hccl.rank_variables({"PATH": "/bin", "HABANA_VISIBLE_MODULES": "2"}) == {}


def test_open_mpi_s_variables_become_torch_s():
    assert hccl.rank_variables(MPI) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
        "HLS_MODULE_ID": "1",
    }


def test_nothing_that_is_set_is_replaced():
    before = {**MPI, **TORCHRUN, "HLS_MODULE_ID": "7"}
    assert hccl.rank_variables(before) == {}
    assert before == {**MPI, **TORCHRUN, "HLS_MODULE_ID": "7"}
    assert hccl.rank_variables({**MPI, "MASTER_ADDR": "gaudi-1", "WORLD_SIZE": "2"}).keys() == {
        "RANK",
        "LOCAL_RANK",
        "MASTER_PORT",
        "HLS_MODULE_ID",
    }


def test_torchrun_s_rank_gets_its_module():
    assert hccl.rank_variables(TORCHRUN) == {"HLS_MODULE_ID": "3"}
    assert hccl.rank_variables({**TORCHRUN, "HABANA_VISIBLE_MODULES": "0, 2,4,6"}) == {"HLS_MODULE_ID": "6"}
    assert hccl.rank_variables({**TORCHRUN, "HABANA_VISIBLE_MODULES": "all"}) == {"HLS_MODULE_ID": "3"}


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (
            {"LOCAL_RANK": "2", "HABANA_VISIBLE_MODULES": "4,5"},
            "LOCAL_RANK 2 has no device: HABANA_VISIBLE_MODULES=4,5 names 2 Gaudi devices.",
        ),
        ({"LOCAL_RANK": "8"}, "LOCAL_RANK 8 has no device: 8 Gaudi devices."),
    ],
)
def test_a_rank_without_a_device_is_refused(environ, said):
    with pytest.raises(RuntimeError, match=re.escape(said)):
        hccl.rank_variables(environ)


@pytest.mark.parametrize(
    ("size", "environ"),
    [
        (8, {}),
        (2, {"HABANA_VISIBLE_MODULES": "4,5"}),
        (16, {"LOCAL_WORLD_SIZE": "8"}),
        (16, {"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}),
        (1, {"LOCAL_WORLD_SIZE": "2", "HABANA_VISIBLE_MODULES": "0"}),  # a group of one
    ],
)
def test_ranks_that_have_a_device_each_are_let_in(size, environ):
    hccl.check_devices(size, environ)


@pytest.mark.parametrize(
    ("size", "environ", "said"),
    [
        (9, {}, "9 ranks on this host, but 8 Gaudi devices; start at most one rank for each."),
        (3, {"HABANA_VISIBLE_MODULES": "4,5"}, "3 ranks on this host, but HABANA_VISIBLE_MODULES=4,5 names 2 Gaudi devices"),
        (18, {"LOCAL_WORLD_SIZE": "9"}, "9 ranks on this host, but 8"),
        (1, {"HABANA_VISIBLE_MODULES": ""}, "1 ranks on this host, but HABANA_VISIBLE_MODULES= names 0"),
    ],
)
def test_more_ranks_than_devices_are_refused(size, environ, said):
    with pytest.raises(RuntimeError, match=re.escape(said)):
        hccl.check_devices(size, environ)


def checks() -> list[str]:
    """Return the names of collectives.py's checks, without importing it: it wants to be a rank."""
    functions = [node for node in ast.parse(SCRIPT.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    return [function.name for function in functions if {"check", "same"} & {getattr(each, "id", "") for each in function.decorator_list}]


@pytest.fixture(scope="module")
def said_by_ranks(stand_in, tmp_path_factory):
    """What the two ranks of one start said of each check."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": launchers.python_path(rehearse=True)},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", checks())
def test_two_ranks(name, said_by_ranks):
    assert [said[name] for said in said_by_ranks] == ["", ""]


@pytest.mark.slow
def test_every_check_was_made(said_by_ranks):
    assert [list(said) for said in said_by_ranks] == [checks(), checks()]
    assert len(checks()) > 30
