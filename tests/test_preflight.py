"""What launch.py says before anything is written: refusals with every problem, warnings where a configuration is only shown."""

import pytest
from conftest import ENGINE, ROOT, TINY, composed

from asr import command_line, composition, preflight
from asr.pipeline import warnings_of


@pytest.fixture
def launcher(monkeypatch, tmp_path):
    """launch.py's main in this process."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    import launch

    monkeypatch.setattr(launch.run.__wrapped__, "__module__", "__main__")  # Hydra finds conf/ by that, as where launch.py is started

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["launch.py", *arguments])
        return launch.main()

    return run


def test_a_refused_launch_writes_nothing_and_names_everything(launcher, tmp_path, capsys):
    problems = ["trainer.args.fp16=true", "trainer.args.use_hpu_graphs_for_training=true", "batching.max_shapes=11"]
    assert launcher(*TINY, *problems) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in said] == ["error", "also", "also"]
    assert said[0].startswith("error: trainer.args.use_hpu_graphs_for_training: HPU graphs need an HPU")
    assert {line.split(": ")[1] for line in said} == {line.partition("=")[0] for line in problems}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.optimum_habana
def test_a_sweep_is_refused_for_one_bad_job(launcher, tmp_path, capsys):
    assert launcher("-m", *TINY, "trainer.args.fp16=false,true") == 2
    assert capsys.readouterr().err.startswith("error: trainer.args.fp16: GaudiTrainer doesn't support it: trainer.args.bf16=true")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.optimum_habana
def test_showing_a_configuration_warns_and_shows_it_all_the_same(launch, tmp_path):
    shown = launch(tmp_path, "--cfg", "job", "trainer.args.fp16=true", "model.layerdrop=0.1")
    assert (shown.code, shown.outputs) == (0, [])
    assert shown.err.startswith("warning: trainer.args.fp16: GaudiTrainer doesn't support it")
    assert len(shown.err.splitlines()) == 1
    assert shown.out.startswith("experiment_name: spoken_digits_ctc")
    assert "fp16: true" in shown.out


@pytest.mark.optimum_habana
@pytest.mark.parametrize(
    ("overrides", "warnings"),
    [
        ([], []),
        (
            ["trainer.args.learning_rat=1"],
            ["trainer.args.learning_rat: GaudiTrainingArguments has no such field. Did you mean learning_rate?"],
        ),
        (["trainer.args.max_hpu_graphs=5"], ["trainer.args.max_hpu_graphs: there are no HPU graphs to apply it to"]),
    ],
)
def test_warnings_of_a_composed_configuration(overrides, warnings):
    found = warnings_of(composed(*overrides))
    assert len(found) == len(warnings)
    assert all(text.startswith(begin) for text, begin in zip(found, warnings, strict=True))


def test_a_missing_value_is_a_warning_where_the_configuration_is_shown(capsys):
    preflight.warn(command_line.read_command_line(["--cfg", "all", "dataset.train_split=???"]))
    assert capsys.readouterr().err.startswith("warning: dataset.train_split: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra.verbose=7", "dry_run=true"], "error: hydra: Hydra can't go on with its own settings (AssertionError"),
        (["--resolve", *ENGINE], "error: hydra: Hydra can't go on with its own settings (ValueError: The --resolve flag"),
        (["++hydra.launcher=x"], "error: hydra.launcher._target_: "),
        (["hydra.run.dir=${hydra.run.dir}"], "error: "),
        (["hydra.run.dir=''"], "error: hydra.run.dir: '' is no folder."),
        (["hydra.run.dir=" + "d" * 300], "error: hydra.run.dir: can't name a folder (File name too long)"),
        (["hydra.mode=${hydra.mode}"], "error: "),
    ],
)
def test_hydra_s_own_settings_are_refused_without_a_traceback(launcher, words, message, capsys):
    assert launcher(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert "Traceback" not in said


def test_what_is_wrong_with_every_job_is_said_at_the_first(launcher, monkeypatch, capsys):
    composed_jobs = []
    real = composition.compose
    monkeypatch.setattr(composition, "compose", lambda *args, **options: composed_jobs.append(args) or real(*args, **options))
    assert launcher("-m", "seed=range(0,500)", "trainer.args.learning_rate=-1", *ENGINE) == 2
    assert capsys.readouterr().err.startswith("error: trainer.args.learning_rate: -1 is out of range")
    assert len(composed_jobs) == 1


def test_a_mistake_of_ours_in_the_task_still_shows_where(launcher, monkeypatch, capsys):
    from asr import experiment

    def broken(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr(experiment, "start", broken)
    assert launcher("dry_run=true") == 1
    assert "Traceback" in capsys.readouterr().err
