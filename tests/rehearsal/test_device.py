"""The stand-in device: compiled once, refused where it can't be, and what it computes and counts, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from asr.errors import ConfigError
from asr.launchers import STAND_IN
from asr.rehearsal import device

HERE = Path(__file__).parent


def on_the_device(*command: str) -> subprocess.CompletedProcess:
    """Run Python where a rehearsal's workers run."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(STAND_IN), str(ROOT), str(ROOT / "tests")]), "PT_HPU_LAZY_MODE": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=240, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.optimum_habana
def test_it_computes_as_a_cpu_and_counts_as_a_gaudi(stand_in):
    done = on_the_device(
        "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), str(HERE / "on_the_device.py")
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_outside_a_rehearsal_there_is_no_habana_frameworks():
    with pytest.raises(ModuleNotFoundError):
        import habana_frameworks  # noqa: F401


@pytest.fixture
def nothing_built(cpu_torch, tmp_path, monkeypatch):
    monkeypatch.setenv("ASR_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_no_compiler_is_said_before_anything_is_written(nothing_built, launch):
    tools = nothing_built / "bin"
    tools.mkdir()
    done = launch(nothing_built, "rehearse=true", environment={"PATH": str(tools)})
    assert done.code == 2
    assert done.err.startswith("error: rehearse: g++ is not on PATH")
    assert "apt install g++" in done.err
    assert not done.outputs


def test_the_compiler_is_the_one_that_cxx_names(nothing_built, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="no-such-compiler is not on PATH"):
        device.check_host()


def test_a_compiler_may_have_options(nothing_built, monkeypatch):
    monkeypatch.setenv("CXX", "g++ -w")
    device.check_host()
    monkeypatch.setenv("CXX", "/bin/false -w")
    with pytest.raises(ConfigError, match=r"by /bin/false -w: it ended with exit code 1"):
        device.build()


def test_lists_of_ops_for_autocast_are_read_or_missed(tmp_path, monkeypatch):
    variable = "PT_HPU_AUTOCAST_FP32_OPS_LIST"
    assert device._chosen(variable, ["exp"]) == ["exp"]
    (tmp_path / "ops.txt").write_text("softmax\nlog\n")
    monkeypatch.setenv(variable, str(tmp_path / "ops.txt"))
    assert device._chosen(variable, ["exp"]) == ["softmax", "log"]
    monkeypatch.setenv(variable, str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match=f"topology.environment: {variable}=.*none.txt can't be read"):
        device._chosen(variable, ["exp"])


def test_what_a_compiler_refuses_is_said_in_one_line(nothing_built, monkeypatch):
    broken = nothing_built / "c++"
    broken.write_text("#!/bin/sh\necho 'device.cpp:1: error: no such header' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(ConfigError, match=r"can't be compiled against torch .* error: no such header"):
        device.build()
    assert [path.suffix for path in device.library_path().parent.iterdir()] == [".lock"]


@pytest.mark.parametrize(("build", "said"), [("cuda: Optional[str] = '12.8'", "cuda"), ("hip = '6.4'", "hip")])
def test_another_build_of_torch_is_refused(build, said, launch, tmp_path):
    """The parent reads torch/version.py and imports no torch, so that a folder will do for another build."""
    (tmp_path / "other" / "torch").mkdir(parents=True)
    (tmp_path / "other" / "torch" / "__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "other" / "torch" / "version.py").write_text(f"from typing import Optional\n__version__ = '2.13.0'\n{build}\n")
    done = launch(tmp_path, "rehearse=true", environment={"PYTHONPATH": str(tmp_path / "other")})
    assert done.code == 2, done.err
    assert done.err.startswith("error: rehearse: needs torch's CPU build")
    assert f"built for {said}" in done.err
    assert not done.outputs


def test_a_host_with_habana_frameworks_runs_the_real_thing(launch, tmp_path):
    (tmp_path / "intel" / "habana_frameworks").mkdir(parents=True)
    (tmp_path / "intel" / "habana_frameworks" / "__init__.py").touch()
    done = launch(tmp_path, "rehearse=true", environment={"PYTHONPATH": str(tmp_path / "intel")})
    assert done.code == 2
    assert "launch the experiment itself" in done.err


def test_it_is_compiled_once(stand_in, monkeypatch):
    monkeypatch.setattr(device, "_compile", lambda library: pytest.fail("compiled again"))
    assert device.build() == stand_in
