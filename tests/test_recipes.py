"""The published recipes: both versions compose, and start what they should."""

import importlib
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, composed

from asr import compatibility
from asr.pipeline import Pipeline

pytestmark = pytest.mark.optimum_habana  # most have arguments of GaudiTrainingArguments

NAMES = (
    "librispeech_ctc_hpu1 librispeech_ctc_hpu8 librispeech_ctc_hpu8_deepspeed common_voice_tr_ctc_streaming "
    "librispeech_wav2vec2_bart_base_1 librispeech_wav2vec2_bart_base_8 librispeech_wav2vec2_bart_large_8 "
    "whisper_small_hi_hpu1 whisper_large_hi_hpu8"
).split()
VERSIONS = [f"{name}/{version}" for name in NAMES for version in ("v1", "v2")]
PIPELINES: dict[str, Pipeline] = {}
LAUNCHED = {
    "librispeech_ctc_hpu1": ("python", 1),
    "librispeech_ctc_hpu8": ("mpirun", 8),
    "librispeech_ctc_hpu8_deepspeed": ("deepspeed", 8),
    "common_voice_tr_ctc_streaming": ("torchrun", 4),
    "librispeech_wav2vec2_bart_base_1": ("python", 1),
    "librispeech_wav2vec2_bart_base_8": ("torchrun", 8),
    "librispeech_wav2vec2_bart_large_8": ("torchrun", 8),
    "whisper_small_hi_hpu1": ("python", 1),
    "whisper_large_hi_hpu8": ("mpirun", 8),
}
"""What starts each recipe, and how many processes."""


def pipeline(version: str) -> Pipeline:
    if version not in PIPELINES:
        PIPELINES[version] = Pipeline.of(composed(f"experiment={version}"))
    return PIPELINES[version]


def starts(command: list[str], launcher: str, processes: int) -> bool:
    words = " ".join(command)
    return {
        "python": command[1:3] == ["-m", "asr.worker"],
        "mpirun": words.startswith(f"mpirun -n {processes} "),
        "deepspeed": words.startswith(f"deepspeed --num_nodes 1 --num_gpus {processes} "),
        "torchrun": "-m torch.distributed.run --nnodes=1" in words and f"--nproc-per-node={processes} " in words,
    }[launcher]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_recipe_starts_what_it_says(version):
    launcher, processes = LAUNCHED[version.partition("/")[0]]
    described = pipeline(version)
    (launch,) = described.launches(Path("run"))
    assert starts(list(launch.command), launcher, processes), launch
    assert described.topology.num_processes == processes


@pytest.mark.parametrize("version", VERSIONS)
def test_a_recipe_goes_together(version):
    found = [str(problem) for problem in compatibility.problems(pipeline(version), on_this_host=False)]
    if version == "whisper_large_hi_hpu8/v1":  # as its comment says
        found = [problem for problem in found if not problem.startswith("trainer.args.gradient_checkpointing: optimum-habana's")]
    assert found == []


@pytest.mark.parametrize("name", NAMES)
def test_every_second_version_is_for_a_gaudi(name):
    described = pipeline(f"{name}/v2")
    assert (described.topology.device, described.topology.use_lazy_mode, described.trainer.engine) == ("hpu", True, "gaudi")
    assert described.trainer.args["bf16"] is True
    assert described.batching.most_shapes <= compatibility.MOST_GRAPHS
    assert described.gaudi_config.use_fused_adam is described.gaudi_config.use_torch_autocast is True
    graphed = described.trainer.args.get("use_hpu_graphs_for_training", False)
    assert graphed == (name in ("librispeech_ctc_hpu1", "librispeech_ctc_hpu8"))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_recipe_says_where_its_values_are_from(version):
    comment = [line for line in (ROOT / "conf" / "experiment" / f"{version}.yaml").read_text().splitlines() if line.startswith("# ")]
    said = " ".join(line.removeprefix("# ") for line in comment)
    assert "one measured by us" in said or "one was measured by us" in said
    assert ("Published:" in said and "What had to differ:" in said) if version.endswith("v1") else "ours" in said
    assert not pipeline(version).trainer.args.get("push_to_hub")


def test_none_of_the_published_recipes_is_missing():
    ours = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    assert {name for name in ours if not name.startswith("spoken_digits")} == set(NAMES)


def test_a_dry_run_shows_the_command_of_a_recipe(launch, tmp_path):
    done = launch(tmp_path, "experiment=librispeech_ctc_hpu8/v1", "dry_run=true")
    assert done.code == 0, done.err
    assert "mpirun -n 8 " in done.out + done.err
    assert "PT_HPU_LAZY_MODE=1" in done.out + done.err


# ---- the document ----


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("recipes")


def test_the_document_says_what_the_configurations_say(recipes, monkeypatch):
    monkeypatch.setattr(recipes, "described", lambda version: (pipeline(version), ""))
    assert recipes.settings_table() in (ROOT / "docs" / "recipes.md").read_text(), "python benchmarks/recipes.py --write docs/recipes.md"
    assert recipes.experiments() == NAMES


@pytest.mark.slow
def test_the_document_says_what_the_plans_come_to(recipes):
    text, _ = recipes.figures_table()
    assert text in (ROOT / "docs" / "recipes.md").read_text(), "python benchmarks/recipes.py --write docs/recipes.md"


def test_a_recipe_s_plan_is_that_of_its_batching(recipes):
    found = recipes.figures("whisper_small_hi_hpu1/v2")
    assert (found.steps, found.utterances) == (5000, 6540)
    assert found.shapes <= 8
    assert found.epochs == pytest.approx(5000 * found.utterances_a_step / 6540)
    padded = recipes.figures("whisper_small_hi_hpu1/v1")
    assert (padded.shapes, padded.label_share < found.label_share) == (1, True)


def test_the_document_s_commands_compose():
    from asr import command_line

    lines = [line for line in (ROOT / "docs" / "recipes.md").read_text().splitlines() if line.startswith("python launch.py")]
    assert len(lines) >= 5
    for line in lines:
        for overrides in command_line.read_command_line(shlex.split(line, comments=True)[2:]).jobs:
            Pipeline.of(composed(*overrides))
