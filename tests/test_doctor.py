"""asr doctor: what it finds on machines that are not this one."""

import os
import shutil
from collections import namedtuple
from importlib.metadata import PackageNotFoundError

import pytest
from conftest import ENGINE, TINY
from fakes import hub as hub_made
from typer.testing import CliRunner

from asr import cli, doctor, gaudi, hub, report
from asr.doctor import BAD, NOTE, OK

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(hub, "is_offline", lambda: True)


@pytest.fixture
def brief(monkeypatch):
    """Leave out the topologies, each of which is composed."""
    monkeypatch.setattr(doctor, "_topologies", lambda: [])


def found(*overrides: str) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine([*TINY, *ENGINE, *overrides])}


def configured(findings: dict[str, doctor.Finding]) -> list[str]:
    """Return what is said of the configuration itself."""
    return [finding.found for name, finding in findings.items() if name.startswith("launch.py ")]


@pytest.mark.slow
def test_this_machine_can_train_on_its_cpu():
    findings = found()
    assert [name for name, finding in findings.items() if finding.state == BAD] == []
    assert findings["topology=cpu"].state == OK
    assert "habana_frameworks isn't installed" in findings["topology=hpu8"].found
    assert "then 1, ...; no hpu" in findings["topology=hpu_nodes"].found
    assert configured(findings) == ["can be launched here"]
    assert doctor.is_well(list(findings.values()))


def test_a_configuration_for_gaudis_is_said_not_to_go_here(brief):
    findings = doctor.examine([*TINY, *ENGINE, "topology=hpu8", "trainer.args.bf16=true"])
    bad = [finding.found for finding in findings if finding.state == BAD]
    assert any("habana_frameworks is not installed here" in problem for problem in bad)
    assert not doctor.is_well(findings)


def test_each_thing_that_is_missing_has_its_mend(brief, monkeypatch):
    real = doctor.version

    def absent(name):
        if name in ("torch", "optuna", "soxr"):
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", absent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 64 << 20))
    monkeypatch.setattr(doctor.locale, "getpreferredencoding", lambda do_setlocale: "ANSI_X3.4-1968")
    findings = found()
    assert (findings["torch"].state, findings["soxr"].mend) == (BAD, "pip install soxr")
    assert (findings["optuna"].state, findings["optuna"].mend) == (NOTE, "pip install -e '.[optuna]'")
    assert (findings["shared memory"].state, findings["shared memory"].found) == (BAD, "64 MiB free in /dev/shm")
    assert "--ipc=host" in findings["shared memory"].mend
    assert findings["locale"].state == BAD
    assert "LC_ALL=C.UTF-8" in findings["locale"].mend


def test_pins_of_optimum_habana_are_held_against_what_is_there(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: {"optimum-habana": "1.21.2", "transformers": "5.0.0", "numpy": "2.0"}.get(name))
    lines = ["transformers<4.56.0,>=4.55.0", "numpy", 'pytest; extra == "tests"', "not a requirement ???"]
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    (finding,) = doctor._pins()
    assert (finding.name, finding.state) == ("transformers", BAD)
    assert finding.found == "5.0.0; optimum-habana 1.21.2 needs <4.56.0,>=4.55.0"
    assert "trainer.engine=transformers" in finding.mend


DRIVERS = {
    "echo '1.24.0-abc, HL-225'": (OK, "1.24.0-abc, HL-225"),
    "echo 'no device' >&2; exit 3": (BAD, "hl-smi ends with 3: no device"),
    "sleep 5": (BAD, "doesn't answer"),
}


@pytest.mark.parametrize("script", DRIVERS)
def test_the_driver_is_asked(tmp_path, monkeypatch, script):
    program = tmp_path / "hl-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "DRIVER_SECONDS", 0.5)
    finding = next(doctor._driver())
    state, said = DRIVERS[script]
    assert finding.state == state
    assert said in finding.found


def test_devices_are_counted_as_a_run_would(monkeypatch):
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "0,1,5")
    (hpus,) = [finding for finding in doctor._driver() if finding.name == "HPUs"]
    assert hpus.found == "3 (the shell chooses 0,1,5)"


@pytest.mark.parametrize("whole", [True, False])
def test_hccl_is_looked_for_in_the_plugin(tmp_path, monkeypatch, whole):
    (tmp_path / "habana_frameworks" / "torch" / "distributed" / ("hccl" if whole else "other")).mkdir(parents=True)
    (tmp_path / "habana_frameworks" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(gaudi, "habana_is_installed", lambda: True)
    assert doctor._hccl().state == (OK if whole else BAD)


def test_room_for_the_checkpoints_of_a_large_model_is_looked_for(brief, monkeypatch, run_dir):
    model = run_dir / "model"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(0, 0, 2 << 30))
    weights = (model / "model.safetensors").stat().st_size
    words = [f"model.name_or_path={model}", "trainer.args.save_total_limit=3"]
    findings = found(*words)
    assert f"takes about {doctor._size(weights * 13)}" in findings["disk for runs"].found
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(0, 0, weights))
    assert found(*words)["disk for runs"].state == BAD


def test_room_for_a_checkpoint_of_the_hub_is_looked_for_in_its_cache(brief, monkeypatch, tmp_path, run_dir):
    cached = hub_made.cache(tmp_path / "home", run_dir / "model") / "hub"
    weights = (run_dir / "model" / "model.safetensors").stat().st_size
    words = [f"model.cache_dir={cached}", "model.name_or_path=someone/tiny", "trainer.args.save_strategy=no"]
    assert f"takes about {doctor._size(weights * 4)}" in found(*words)["disk for runs"].found
    assert "takes 4 times its model's weights, whose size isn't known" in found("trainer.args.save_strategy=no")["disk for runs"].found


def test_a_silent_hub_is_no_error_but_said(monkeypatch):
    monkeypatch.setattr(hub, "is_offline", lambda: False)
    monkeypatch.setattr(hub, "why_silent", lambda: "it doesn't answer within 3 s")
    (finding,) = doctor._hub()
    assert finding.state == NOTE
    assert "doesn't answer" in finding.found
    assert "HF_ENDPOINT" in finding.mend


def test_the_command(brief):
    done = CliRunner().invoke(cli.commands, ["doctor", *TINY, *ENGINE])
    assert done.exit_code == 0, done.output
    assert "can be launched here" in done.output
    done = CliRunner().invoke(cli.commands, ["doctor", *ENGINE, "topology=hpu1"])
    assert done.exit_code == 1
    assert report.doctor_table([doctor.Finding("[red]x", OK, "y")]).row_count == 1
