"""Time and bytes from launch to the first optimizer step, against a pipeline that decodes the corpus beforehand.

    python benchmarks/first_step.py [500 5000] [--rounds 3] [--format flac]

Whole processes in turn. Ours: `python launch.py` on a tiny model, batch size 1, to the line of run.log that says the step
is done; cold with no cache of headers, warm with what the cold run left. Theirs: benchmarks/materialise.py, the
published way, with 2 workers. Bytes: all that lies in the run directory and the caches at that moment. A corpus of one
utterance gives the fixed start-up (imports, the model), which is subtracted: what is left is preparation, the part
that grows; ours is taken without the worker's imports, which run.log times and which differ by seconds from run to
run. Medians over the rounds. As the last line, a JSON object; its ratios are of the largest corpus, cold, and
take our preparation for no shorter than what start-up itself differs by (the range of the middle half of all runs).
Files are in the page cache for all alike. 5,000 utterances take 6 GB below the system's temp dir while this runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import corpus

ROOT = Path(__file__).resolve().parent.parent
DONE = "first optimizer step done"
IMPORTS = ("importing torch, transformers", "habana_frameworks")
"""What run.log says before and after the imports of the worker: the same for any corpus, and the least steady part."""
ARMS = ("ours, cold", "ours, warm", "theirs")
OVERRIDES = (
    "dataset=jsonl dataset.train_split=train.jsonl dataset.eval_split=dev.jsonl dataset.max_duration_in_seconds=20 model=wav2vec2_tiny "
    "stages=[train] trainer.args.max_steps=1 trainer.args.save_strategy=no trainer.args.report_to=none "
    "trainer.args.per_device_train_batch_size=1"
).split()


@dataclass(frozen=True)
class FirstStep:
    seconds: float
    num_bytes: int
    import_seconds: float = 0.0
    """Where it is known: part of `seconds`."""

    @property
    def own_seconds(self) -> float:
        return self.seconds - self.import_seconds


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def caches_in(folder: Path) -> dict[str, str]:
    """Return the environment in which everything that is written lies in `folder`."""
    return {**os.environ, "ASR_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def ours(root: Path, folder: Path, run: str) -> FirstStep:
    """Launch in `folder`, which holds the caches; the bytes are those of this run and of all caches."""
    run_dir = folder / run
    command = [sys.executable, str(ROOT / "launch.py"), *OVERRIDES, f"dataset.root='{root}'", f"hydra.run.dir='{run_dir}'"]
    log, written = run_dir / "run.log", 0
    begin = time.time()
    with (folder / f"{run}.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=folder, env=caches_in(folder), stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None and not written:
            time.sleep(0.02)
            if log.exists() and DONE in log.read_text(encoding="utf-8"):
                written = sum(bytes_in(folder / name) for name in (run, "cache", "hf")) - bytes_in(run_dir / "model")  # saved later
        process.wait()
    if process.returncode or not written:
        raise SystemExit(f"ours ended with exit code {process.returncode}:\n{(folder / f'{run}.txt').read_text()[-3000:]}")
    done, *imports = (logged_at(log, words) for words in (DONE, *IMPORTS))
    return FirstStep(done - begin, written, imports[1] - imports[0])


def logged_at(log: Path, words: str) -> float:
    """Return when a line of run.log with these words was written, as seconds since the epoch."""
    line = next(line for line in log.read_text(encoding="utf-8").splitlines() if words in line)
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()  # local time, as logging writes it


def theirs(root: Path, folder: Path) -> FirstStep:
    command = [sys.executable, str(Path(__file__).with_name("materialise.py")), str(root), str(folder / "vocab.json")]
    begin = time.time()
    done = subprocess.run(command, cwd=folder, env=caches_in(folder), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"theirs ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return FirstStep(json.loads(done.stdout.splitlines()[-1])["first_step_at"] - begin, bytes_in(folder))


def one_round(roots: Mapping[int, Path]) -> dict[tuple[str, int], FirstStep]:
    """Return the first steps of every arm at every size, each with caches of its own, removed at once."""
    found = {}
    for count, root in roots.items():
        with tempfile.TemporaryDirectory() as folder:
            found["ours, cold", count] = ours(root, Path(folder), "cold")
            found["ours, warm", count] = ours(root, Path(folder), "warm")
        with tempfile.TemporaryDirectory() as folder:
            found["theirs", count] = theirs(root, Path(folder))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="*", default=[500, 5000], help="utterances; 1 comes by itself")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--format", choices=corpus.FORMATS, default="flac", help="of the audio; LibriSpeech's is flac")
    parser.add_argument("--corpus", type=Path, default=corpus.DEFAULT_FOLDER, help="where synthetic audio is made and kept")
    asked = parser.parse_args(arguments)
    sizes = sorted({1, *asked.sizes})
    roots = {count: corpus.make(asked.corpus, train=count, dev=1, audio_format=asked.format) for count in sizes}
    with tempfile.TemporaryDirectory() as folder:
        ours(roots[1], Path(folder), "uncounted")  # brings the packages into the page cache
    rounds = [one_round(roots) for _ in range(asked.rounds)]
    rows = {(arm, count): figures(rounds, arm, count) for arm in ARMS for count in sizes}
    print("arm          utterances   to the first step, s   less start-up, s         MB   MB less start-up")
    for (arm, count), row in rows.items():
        print(
            f"{arm:12} {count:10} {row['seconds']:22.2f} {row['preparation_seconds']:18.2f}"
            f" {row['bytes'] / 1e6:10.2f} {row['preparation_bytes'] / 1e6:18.2f}"
        )
    cold, published = rows["ours, cold", sizes[-1]], rows["theirs", sizes[-1]]
    starts = [r[arm, 1].own_seconds for r in rounds for arm in ("ours, cold", "ours, warm")]
    noise = statistics.quantiles(starts, n=4)[2] - statistics.quantiles(starts, n=4)[0]
    if cold["preparation_seconds"] < 2 * noise:
        print(f"Start-up differs by {noise:.2f} s from run to run: too much to tell our preparation well; try more --rounds.")
    result = {
        "preparation_ratio": published["preparation_seconds"] / max(cold["preparation_seconds"], noise),
        "bytes_ratio": cold["bytes"] / published["bytes"],
        "start_up_noise_seconds": noise,
        "figures": {arm: {str(count): rows[arm, count] for count in sizes} for arm in ARMS},
    }
    print(json.dumps(result))


def figures(rounds: Sequence[Mapping[tuple[str, int], FirstStep]], arm: str, count: int) -> dict[str, float]:
    """Return the medians of an arm at a size, and what is left of them without the fixed start-up."""

    def median(of: int, value: str) -> float:
        return statistics.median(getattr(r[arm, of], value) for r in rounds)

    return {
        "seconds": median(count, "seconds"),
        "preparation_seconds": median(count, "own_seconds") - median(1, "own_seconds"),
        "bytes": median(count, "num_bytes"),
        "preparation_bytes": median(count, "num_bytes") - median(1, "num_bytes"),
    }


if __name__ == "__main__":
    main()
