"""Small real things that several tests share: a corpus of digits, a launcher, and one finished run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from asr import engines

ROOT = Path(__file__).resolve().parent.parent

pytest_plugins = ["recipes_made"]

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTHONWARNINGS"] = "ignore"
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # mpirun, as in an activated environment
os.environ["OMP_NUM_THREADS"] = "1"  # two test processes on two cores

INSTALLED_ENGINES = [name for name in engines.names() if engines.engine(name).argument_fields()]
ENGINE = [] if "gaudi" in INSTALLED_ENGINES else ["trainer.engine=transformers"]
"""Overrides that name an engine where the default one's library isn't installed: the second environment of make test-slow."""
EVERY_ENGINE = [pytest.param("gaudi", marks=pytest.mark.optimum_habana), "transformers"]
"""Parameters of a test that holds for every engine."""

TINY_CORPUS = {
    "num_train_utterances": 24,
    "num_validation_utterances": 4,
    "num_test_utterances": 10,
    "num_train_speakers": 4,
    "max_digits": 3,
}
TINY = [f"dataset.{key}={value}" for key, value in TINY_CORPUS.items()]
"""Overrides that make the corpus small."""
FINISHED = [*TINY, "seed=7", *(f"trainer.args.{arg}" for arg in ("max_steps=6", "save_strategy=steps", "save_steps=2", "logging_steps=1"))]
"""What the run of the fixture `finished` is made with."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("optimum_habana") and "gaudi" not in INSTALLED_ENGINES:
        pytest.skip("needs optimum-habana, which this environment is without on purpose")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep made corpora out of the user's cache, and share them among the tests."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("ASR_CACHE")
    os.environ["ASR_CACHE"] = str(folder)
    yield folder
    os.environ.pop("ASR_CACHE") if before is None else os.environ.update(ASR_CACHE=before)


@pytest.fixture(scope="session")
def cpu_torch() -> None:
    """Skip where torch is built for another device, which rehearsals refuse."""
    from asr.rehearsal import device

    if [name for name in ("cuda", "hip", "xpu") if device.torch_builds().get(name)]:
        pytest.skip("needs torch's CPU build; README says where an index has it")


@pytest.fixture(scope="session")
def stand_in(own_cache: Path, cpu_torch: None) -> Path:
    """The stand-in device, compiled once for all test processes and the next test run too, where the cache of this one has it."""
    from asr.rehearsal import device

    kept = ROOT / ".pytest_cache" / "rehearsal"
    kept.mkdir(parents=True, exist_ok=True)
    (own_cache / "rehearsal").symlink_to(kept)
    return device.build()


@dataclass
class Launched:
    """How a `python launch.py` ended."""

    code: int
    out: str
    err: str
    cwd: Path

    @property
    def outputs(self) -> list[Path]:
        return sorted((self.cwd / "outputs").rglob("*"))


def launch_command(*arguments: str) -> list[str]:
    engine = [] if "--help" in arguments or any(a.startswith("trainer.engine=") for a in arguments) else ENGINE
    return [sys.executable, str(ROOT / "launch.py"), *arguments, *engine]


@pytest.fixture(scope="session")
def launch(own_cache: Path) -> Callable[..., Launched]:
    """Return a function that runs launch.py as a user does, in a directory of its own."""

    def run(cwd: Path, *arguments: str, environment: dict[str, str] | None = None) -> Launched:
        done = subprocess.run(
            launch_command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=240, env={**os.environ, **(environment or {})}
        )
        return Launched(done.returncode, done.stdout, done.stderr, cwd)

    return run


PLANTED = {"HF_TOKEN": "planted-hub-token-5e1f", "WANDB_API_KEY": "planted-tracker-key-77aa"}
"""Secrets in the environment of that run, which it may write nowhere: tests/test_security.py."""


@pytest.fixture(scope="session")
def finished(launch: Callable[..., Launched], tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """One short run of the default experiment, launched as a user does; its directory is cwd/'a run'. All test processes share it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    kept, cwd = shared / "finished.json", shared / "finished run"
    with FileLock(shared / "finished.lock"):
        if not kept.exists():
            cwd.mkdir()
            done = launch(cwd, *FINISHED, "hydra.run.dir=a run", environment=PLANTED)
            kept.write_text(json.dumps({"code": done.code, "out": done.out, "err": done.err}))
        return Launched(**json.loads(kept.read_text()), cwd=cwd)


@pytest.fixture(scope="session")
def run_dir(finished: Launched) -> Path:
    assert finished.code == 0, finished.err
    return finished.cwd / "a run"


@pytest.fixture(scope="session")
def digits(own_cache: Path):
    """The small corpus of spoken digits as a source."""
    from asr.sources.spoken_digits import SpokenDigits

    source = SpokenDigits(**TINY_CORPUS)
    list(source.utterances("train"))
    return source


@pytest.fixture
def tokenizer(tmp_path):
    """A tokenizer of six letters."""
    from asr.vocabulary import Vocabulary

    vocabulary = Vocabulary()
    return vocabulary.tokenizer_from(vocabulary.build(["abcdef"]), tmp_path)


def composed(*overrides: Sequence[str] | str) -> dict:
    """Compose the real conf/ as launch.py does."""
    from asr import composition

    return composition.to_container(composition.compose([*ENGINE, *map(str, overrides)]))


def other_half(option: str) -> list[str]:
    """Return the override that goes with a model, or a trainer, of sequences: by themselves they are refused beside CTC's."""
    if option == "trainer=seq2seq":
        return ["model=digits_encoder_decoder"]
    sequences = option.startswith(("model=digits_", "model=whisper_", "model=wav2vec2_bart_"))
    return ["trainer=seq2seq"] if sequences else []


def sound(path: Path, seconds: float = 0.1, **options: str) -> Path:
    """Write a short rising ramp at 16 kHz, its format by the suffix, and return its path."""
    import numpy as np
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.linspace(-0.5, 0.5, round(seconds * 16000)), 16000, **options)
    return path
