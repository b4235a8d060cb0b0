"""Every command of README and docs/ is run, by bash and in a reader's folder: with the corpora, models and runs that they name, made small.

What is added to a command makes it short, or is what this machine lacks: a Gaudi, the hub, a corpus at /data.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import FINISHED, ROOT, TINY
from fakes import hub
from recipes_made import overrides as of_recipe
from recipes_made import parquet
from shards_made import tar

from asr import experiments

pytestmark = [pytest.mark.slow, pytest.mark.optimum_habana]

RUN = Path("outputs/spoken_digits_ctc/STAMP")
TEXT = {"train": "ONE TWO SIX", "other": "TWO ONE"}

NOT_HERE = {
    r"make ": ".ci/run makes everything from nothing, and runs the tests",
    r"pip install": "what installs is the Makefile's and .ci/run's",
    r"source ": "of the reader's own shell",
    r"python -c": "needs a Gaudi's driver",
    r"export |srun |#": "tests/e2e/test_slurm.py submits",
    r"asr experiments lock$": "would release what is a draft of this repository: tests/test_experiments.py",
    r"python launch.py trainer.args.report_to=mlflow": "an extra whose pins don't go with ours: tests/test_trackers.py",
}
"""How the lines begin that aren't run, and why not."""
ENDS = {"asr doctor topology=hpu8": 1}
"""Commands that end otherwise than in 0 here."""


def lines() -> list[str]:
    """Return every line of a shell block of the pages, once."""
    found: dict[str, None] = {}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = "".join(re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL))
        found |= dict.fromkeys(" ".join(line.split("  # ")[0].split()) for line in blocks.replace("\\\n", " ").splitlines() if line.strip())
    return list(found)


def is_run(line: str) -> bool:
    return not any(re.match(start, line) for start in NOT_HERE)


def write_sounds(folder: Path, names: list[str], suffix: str = "wav") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        soundfile.write(folder / f"{name}.{suffix}", np.random.default_rng(number).normal(0, 0.1, 8000 + 2000 * number), 16000)
    return [folder / f"{name}.{suffix}" for name in names]


def write_corpora(data: Path) -> None:
    """Write each kind of corpus that a page reads below /data."""
    for split, speaker in (("train-clean-100", "19"), ("dev-clean", "84")):
        folder = data / "LibriSpeech" / split / speaker / "198"
        names = [f"{speaker}-198-{n:04d}" for n in range(4)]
        write_sounds(folder, names, "flac")
        (folder / f"{speaker}-198.trans.txt").write_text("".join(f"{name} {TEXT['train']}\n" for name in names))
    columns = "client_id path sentence up_votes down_votes age gender accents variant locale segment".split()
    for number, split in enumerate(("train", "dev", "test")):
        clips = write_sounds(data / "cv" / "tr" / "clips", [f"clip_{number}{n}" for n in range(4)], "mp3")
        rows = ["\t".join([f"s{number}", clip.name, "Bugün hava güzel", "2", "0", "", "", "", "", "tr", ""]) for clip in clips]
        (data / "cv" / "tr" / f"{split}.tsv").write_text("\n".join(["\t".join(columns), *rows]) + "\n")
    mine = data / "mine"
    for split in ("train", "dev", "test"):
        sounds = write_sounds(mine / split, ["a", "b", "c", "d"])
        (mine / split / "metadata.csv").write_text("file_name,text\n" + "".join(f"{s.name},{TEXT['train']}\n" for s in sounds))
        listed = [{"audio_filepath": f"{split}/{s.name}", "text": TEXT["train"], "duration": soundfile.info(s).duration} for s in sounds]
        (mine / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
        (mine / split / "wav.scp").write_text("".join(f"{s.stem} {s}\n" for s in sounds))
        (mine / split / "text").write_text("".join(f"{s.stem} {TEXT['train']}\n" for s in sounds))
    for name, column in (("parquet", "text"), ("a", "text"), ("b", "sentence"), ("fleurs", "transcription"), ("cv17", "sentence")):
        parquet(data / name / "train-00000-of-00001.parquet", range(12), column, TEXT["train"])
        parquet(data / name / "test-00000-of-00001.parquet", range(12, 16), column, TEXT["other"])
        files = [{"split": split, "path": f"{split}-*.parquet"} for split in ("train", "test")]
        named = {"fleurs": "tr_tr", "cv17": "tr"}.get(name, "default")
        (data / name / "README.md").write_text("---\n" + json.dumps({"configs": [{"config_name": named, "data_files": files}]}) + "\n---\n")
    tar(data / "tars", range(12))
    tar(data / "tars", range(12, 16), split="test")


ARPA = """\\data\\
ngram 1=5
ngram 2=1

\\1-grams:
-1\t<unk>
-99\t<s>\t-0.3
-1\t</s>
-0.5\tone\t-0.3
-0.5\ttwo\t-0.3

\\2-grams:
-0.2\tone two

\\end\\
"""


def code_of(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


@pytest.fixture(scope="session")
def desk(tmp_path_factory, launch, own_cache):
    """A reader's folder: runs, sweeps, recordings, a language model, and the pages' own classes."""
    folder = tmp_path_factory.mktemp("desk")
    write_corpora(folder / "data")
    short = ["trainer.args.max_steps=2", "trainer.args.save_strategy=no"]
    for run, overrides in {
        str(RUN): FINISHED,
        f"{RUN.parent}/OTHER": [*TINY, *short, "seed=8"],
        "from/a/colleague": ["dataset=folder", f"dataset.root={folder}/data/mine", *short],
    }.items():
        done = launch(folder, *overrides, f"hydra.run.dir={run}")
        assert done.code == 0, done.err
    done = launch(folder, "-m", *TINY, *short, "trainer.args.learning_rate=1e-3,2e-3", f"hydra.sweep.dir={RUN}-sweep")
    assert done.code == 0, done.err
    for name in ("RUN", "OTHER", "THIRD"):
        shutil.copytree(folder / (RUN.parent / "OTHER" if name == "OTHER" else RUN), folder / name)
    (recording,) = write_sounds(folder, ["recording"])
    write_sounds(folder, ["recording"], "mp3")
    write_sounds(folder / "interviews", ["first", "second"])
    write_sounds(folder / "talks" / "2026", ["third"], "flac")
    (folder / "more.jsonl").write_text(json.dumps({"audio_filepath": str(recording)}) + "\n")
    (folder / "lm.arpa").write_text(ARPA)
    for name in ("our_corpus", "ours"):
        file = folder / "team" / "conf" / "experiment" / name / "v1.yaml"
        file.parent.mkdir(parents=True)
        above = "# @package _global_\n# Ours.\ndefaults:\n  - /experiment/spoken_digits_ctc/v1\n  - _self_\n\n"
        file.write_text(f"{above}experiment_name: {name}\nseed: 3\n")
    experiments.release(experiments.Catalogue(folder / "team" / "conf"))
    own, model, *_ = code_of("extending.md", "python")
    (folder / "our_corpus.py").write_text(own)
    (folder / "our_model.py").write_text(model)
    (folder / "team" / "dataset").mkdir()
    (folder / "team" / "dataset" / "our_corpus.yaml").write_text(code_of("extending.md", "yaml")[0].replace("/data", f"{folder}/data"))
    small = (ROOT / "conf" / "model" / "wav2vec2_bert_tiny.yaml").read_text()
    (folder / "team" / "model").mkdir()
    (folder / "team" / "model" / "our_model.yaml").write_text(
        re.sub(r"/schema/[\w.]+@_here_", "/schema/our_model.OurModel@_here_", small) + "frozen_layers: 1\n"
    )
    calls = write_sounds(folder / "data" / "calls" / "support", ["train", "test"])
    for call in calls:
        call.with_suffix(".csv").write_text(f"file,text,agent\n{call.name},hello,ann\n")
    return folder


def key_of(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def on_this_machine(command: list[str], folder: Path, corpora, checkpoints) -> list[str]:
    """Return the words of a launch with those that make it short and name what is here."""
    given = {key_of(word): word.partition("=")[2] for word in command if "=" in word}
    if "dry_run" in given or any(word in ("--help", "--cfg") for word in command):
        return command
    ours: dict[str, str] = {}

    def take(*overrides: str) -> None:
        ours.update({key_of(word): word for word in overrides})

    recipe = given.get("experiment", "").partition(",")[0]
    is_published = recipe.startswith(("librispeech", "common_voice", "whisper"))
    if is_published:
        found = of_recipe(recipe if "/" in recipe else f"{recipe}/v2", corpora, checkpoints)[1:]
        if "rehearse" in given:
            found = [word for word in found if key_of(word) in ("dataset.root", "dataset.cache_dir", "model.name_or_path")]
        take(*(word for word in found if not (key_of(word).startswith("dataset.") and "dataset" in given)))
        if "," in given["experiment"]:  # Hydra composes what a sweep doesn't vary by itself: it is of every dataset then
            del ours["dataset.cache_dir"]
    elif "dataset" not in given and "dataset.path" not in given and "dataset.parts" not in given:
        take(*TINY)
    if "rehearse" not in given:
        take("trainer.args.max_steps=2")
        if given.get("topology") in ("hpu1", "hpu8"):
            take("topology=cpu" if given["topology"] == "hpu1" else "topology=cpu2", "trainer.args.bf16=false")
        elif given.get("topology") == "hpu_nodes":
            return [*command, "dry_run=true"]
    model = given.get("model", "")
    if model in ("wav2vec2_large_lv60", "wav2vec2_base"):
        take(f"model.name_or_path={checkpoints}/encoder")
    elif model == "wav2vec2_bart_base":
        take(f"model.encoder_name_or_path={checkpoints}/encoder", f"model.decoder_name_or_path={checkpoints}/bart")
    elif model == "whisper_small":
        take(f"model.name_or_path={checkpoints}/whisper")
    if given.get("trainer") == "seq2seq" or "seq2seq" in recipe or "spoken_digits_whisper" in recipe:
        take("trainer.args.generation_max_length=12", "trainer.args.save_strategy=no")
    at_the_hub = {"librispeech_clean_100": "librispeech", "common_voice_hi": "whisper"}.get(given.get("dataset", ""))
    if at_the_hub:
        take(f"dataset.root={corpora[at_the_hub]}")
    for name, here in (("google/fleurs", "fleurs"), ("mozilla-foundation/common_voice_17_0", "cv17")):
        if given.get("dataset.path") == name:
            take(f"dataset.root={folder}/data/{here}")
    if given.get("dataset") == "common_voice_tr_parquet":
        take(f"dataset.root={corpora['common_voice_tr']}")
    if "+sweep=lr_batch" in command:
        take("trainer.args.learning_rate=1e-3,2e-3", "trainer.args.per_device_train_batch_size=8")
    if "hydra/sweeper=asr_optuna" in command or "+sweep=optuna" in command:
        take("hydra.sweeper.n_trials=2")
    if "hydra.launcher.n_jobs" in given:
        take("hydra.launcher.n_jobs=2")
    return [*(word for word in command if key_of(word) not in ours), *ours.values()]


def unfinished(folder: Path) -> None:
    """Make the run one that was killed after its second checkpoint, and the sweep one whose second job never began."""
    run = folder / RUN
    record = json.loads((run / "run.json").read_text())
    record |= {"status": "failed", "exit_code": 1}
    (run / "run.json").write_text(json.dumps(record))
    shutil.rmtree(run / "model")
    shutil.rmtree(max((run / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])))
    sweep = folder / f"{RUN}-sweep"
    for left in (sweep / "jobs" / "1.json", sweep / "1"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


@pytest.mark.parametrize("line", [line for line in lines() if is_run(line)])
def test_it_runs_as_written(line, desk, corpora, checkpoints, tmp_path, own_cache):
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder, symlinks=True)
    if "resume" in line:
        unfinished(folder)
    if "hydra.sweep.dir" in line:  # a new one: the folder's is of another command
        shutil.rmtree(folder / f"{RUN}-sweep")
    if "HF_HOME" in line:
        hub.cache(folder / "a" / "cache", checkpoints / "encoder", name="facebook/wav2vec2-base")
    environment = {**os.environ, "WANDB_MODE": "offline", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    here = line.replace("experiment=...", "experiment=spoken_digits_ctc/v1").replace("openai/whisper-small", f"{checkpoints}/whisper")
    for there, here_is in (("/a/folder", checkpoints / "encoder"), ("/a/corpus", folder / "data" / "mine")):
        here = here.replace(there, str(here_is))
    here = re.sub(r"(?<![\w.])/(data|team/conf|from/a|a/cache)(?=/|\b)", rf"{folder}/\1", here)
    here = here.replace("/models/whisper-small", f"{checkpoints}/whisper").replace("/shared/runs", f"{folder}/shared")
    if "launch.py" in here and "$(" not in here:
        words = shlex.split(here, comments=True)
        first = words.index("launch.py") + 1
        before = " ".join(
            word if "=" not in word else f"{key_of(word)}={os.path.expandvars(word.partition('=')[2])}" for word in words[:first]
        )
        here = f"{before} {shlex.join(on_this_machine(words[first:], folder, corpora, checkpoints))}"
    here = here.replace("python launch.py", shlex.join(["python", str(ROOT / "launch.py")]))
    users = {"...": {"name": "my-name", "orgs": [], "auth": {"accessToken": {"role": "write"}}}}
    with hub.taking(users) as server:
        if "publish" in here:
            at = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "HF_ENDPOINT": server.url, "HF_TOKEN": "..."}
            environment |= {**at, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(["bash", "-c", here], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == ENDS.get(line, 0), f"{here}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_what_isn_t_run_is_known():
    left = [line for line in lines() if not is_run(line)]
    assert len(left) < 20
    assert [start for start in NOT_HERE if not any(re.match(start, line) for line in left)] == []
