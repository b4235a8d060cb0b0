"""What memory a run takes as it goes on: flat in training after the first epoch and along a stream, text alone in evaluation.

    python benchmarks/memory.py [--steps 2000] [--stream 2000] [--utterances 200 2000 10000] [--rounds 1] [--override key=value ...]

A tiny model on short synthetic utterances (0.3 to 1.5 s, 14 characters a second; a few audio files that many rows name), each
figure from a process of its own, on Linux. Training: the resident memory at the begin of every epoch but the first, when
the evaluation and the checkpoint of the epoch before are done, and at the end; growth is the last figure over the
first. A stream: the same over tar archives of 4,000 utterances, which are read, shuffled and put into bins in the process that
trains, measured at every tenth of the steps. Evaluation: how far the peak of one evaluation lies above what was resident before it,
over splits of several sizes; what it grows with each utterance is the slope between the smallest and the largest, so that whatever
the forward takes anyway cancels out. Its processes have glibc give memory back at once: otherwise its pools hide what is looked for.
The last line is a JSON object; of several rounds it has the medians.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import soundfile
import trainers

ROOT = Path(__file__).resolve().parent.parent
MB = 1e6
KEEPS_NO_POOLS = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc's settings (man mallopt) by which a peak differs by a fifth of a MB from run to run; without, by 25."""
TRAIN_UTTERANCES, BATCH_SIZE = 400, 4
SECONDS = (0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5)
"""Lengths of the audio files."""


def make(folder: Path, *, train: int, dev: int) -> Path:
    """Return `folder` with two manifests whose rows name a few short files again and again, each with words of its own."""
    folder.mkdir(parents=True)
    for i, seconds in enumerate(SECONDS):
        soundfile.write(folder / f"{i}.wav", corpus.speech_like(round(seconds * corpus.RATE_HZ), np.random.default_rng(i)), corpus.RATE_HZ)
    dice = np.random.default_rng(0)
    for split, count in (("train", train), ("dev", dev)):
        with (folder / f"{split}.jsonl").open("w") as lines:
            for i in range(count):
                seconds = SECONDS[i % len(SECONDS)]
                row = {"id": f"{i:06}", "audio_filepath": f"{i % len(SECONDS)}.wav", "duration": seconds}
                lines.write(json.dumps(row | {"text": corpus.transcript(seconds, dice)}) + "\n")
    return folder


def resident(what: str = "VmRSS") -> int:
    """Return bytes that this process has in memory; of VmHWM, the most it had since `forget_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Let VmHWM begin anew (man proc_pid_clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def training(folder: Path, steps: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Train and return the resident bytes at the begin of every epoch but the first and at the end."""
    root = make(folder / "corpus", train=TRAIN_UTTERANCES, dev=40)
    each_epoch = ["trainer.args.save_strategy=epoch", "trainer.args.eval_strategy=epoch", f"trainer.args.max_steps={steps}"]
    trainer = built(folder, root, *each_epoch, *overrides)
    from transformers import TrainerCallback

    found: list[int] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step:
                found.append(resident())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            found.append(resident())

    trainer.add_callback(Watch())
    trainer.train()
    return {"resident_bytes": found, "steps": trainer.state.global_step}


def stream(folder: Path, steps: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Train on a stream and return the resident bytes at every tenth of the steps, and how far it was read."""
    root = make_archives(folder / "corpus")
    of_stream = ["dataset=webdataset", "dataset.eval_split=validation", "dataset.streaming=true", "dataset.sample_utterances=500"]
    trainer = built(folder, root, *of_stream, f"trainer.args.max_steps={steps}", *overrides)
    from transformers import TrainerCallback

    found: list[int] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step % max(1, steps // 10) == 0:
                found.append(resident())

    trainer.add_callback(Watch())
    trainer.train()
    return {"resident_bytes": found, "steps": trainer.state.global_step, "epochs_begun": trainer.stream_report()["epochs_begun"]}


def make_archives(folder: Path, *, archives: int = 20, utterances: int = 4000) -> Path:
    """Return `folder` with tar archives of short utterances, each with words of its own, and one of 40 to evaluate."""
    folder.mkdir(parents=True)
    sounds = []
    for i, seconds in enumerate(SECONDS):
        stored = io.BytesIO()
        soundfile.write(stored, corpus.speech_like(round(seconds * corpus.RATE_HZ), np.random.default_rng(i)), corpus.RATE_HZ, format="WAV")
        sounds.append(stored.getvalue())
    dice = np.random.default_rng(0)
    for split, number, count in [*(("train", i, utterances // archives) for i in range(archives)), ("validation", 0, 40)]:
        with tarfile.open(folder / f"{split}-{number:06}.tar", "w") as archive:
            for i in range(count):
                words = corpus.transcript(SECONDS[i % len(SECONDS)], dice).encode()
                for ending, content in (("wav", sounds[i % len(SECONDS)]), ("txt", words)):
                    member = tarfile.TarInfo(f"{number:03}-{i:06}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


def evaluation(folder: Path, utterances: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Evaluate once and return how far the peak lay above what was resident before."""
    root = make(folder / "corpus", train=BATCH_SIZE, dev=utterances)
    trainer = built(folder, root, *overrides)
    forget_peak()
    before = resident()
    trainer.evaluate()
    return {"peak_bytes": resident("VmHWM") - before, "resident_before_bytes": before}


def built(folder: Path, root: Path, *overrides: str) -> Any:
    sizes = [f"trainer.args.per_device_{phase}_batch_size={BATCH_SIZE}" for phase in ("train", "eval")]
    return trainers.built(folder / "run", root, "model=wav2vec2_tiny", *sizes, *overrides)


def in_child(asked: argparse.Namespace, *part: str) -> dict[str, Any]:
    """Measure one part in a process of its own and return what its last line says."""
    command = [sys.executable, __file__, "--part", *part, "--override", *asked.override]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(KEEPS_NO_POOLS if part[0] == "evaluation" else {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(part)} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="of training; 0 leaves training out")
    parser.add_argument("--stream", type=int, default=2000, help="steps of training on a stream; 0 leaves it out")
    parser.add_argument("--utterances", type=int, nargs="*", default=[200, 2000, 10000], help="sizes of the split that is evaluated")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--override", nargs="*", default=[], help="further overrides")
    parser.add_argument("--corpus", type=Path, help="taken by every benchmark; this one's is made and removed each time")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)  # what a child of this one measures
    asked = parser.parse_args(arguments)
    if asked.part:
        measure = {"training": training, "stream": stream, "evaluation": evaluation}[asked.part[0]]
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), int(asked.part[1]), asked.override)))
        return
    figures = training_figures(asked) if asked.steps else {}
    figures |= stream_figures(asked) if asked.stream else {}
    figures |= evaluation_figures(asked) if asked.utterances else {}
    print(json.dumps(figures))


def training_figures(asked: argparse.Namespace) -> dict[str, Any]:
    rounds = [in_child(asked, "training", str(asked.steps)) for _ in range(asked.rounds)]
    print("epochs done   resident, MB")
    for epoch, found in enumerate(rounds[0]["resident_bytes"], 1):
        print(f"{epoch:11} {found / MB:14.1f}")
    first, last = (statistics.median(r["resident_bytes"][at] for r in rounds) for at in (0, -1))
    return {"steps": rounds[0]["steps"], "training_growth": last / first, "training_growth_mb": (last - first) / MB}


def stream_figures(asked: argparse.Namespace) -> dict[str, Any]:
    rounds = [in_child(asked, "stream", str(asked.stream)) for _ in range(asked.rounds)]
    print("steps of a stream   resident, MB")
    for tenth, found in enumerate(rounds[0]["resident_bytes"], 1):
        print(f"{tenth * max(1, asked.stream // 10):17} {found / MB:14.1f}")
    first, last = (statistics.median(r["resident_bytes"][at] for r in rounds) for at in (0, -1))
    return {
        "stream_steps": rounds[0]["steps"],
        "stream_epochs": rounds[0]["epochs_begun"],
        "stream_growth": last / first,
        "stream_growth_mb": (last - first) / MB,
    }


def evaluation_figures(asked: argparse.Namespace) -> dict[str, Any]:
    sizes = sorted(asked.utterances)
    peaks = {}
    print("utterances   peak above what was resident before, MB")
    for size in sizes:
        peaks[size] = statistics.median(in_child(asked, "evaluation", str(size))["peak_bytes"] for _ in range(asked.rounds))
        print(f"{size:10} {peaks[size] / MB:39.1f}")
    slope = (peaks[sizes[-1]] - peaks[sizes[0]]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else 0.0
    return {"evaluation_bytes_an_utterance": slope, "evaluation_peak_mb": {str(n): peak / MB for n, peak in peaks.items()}}


if __name__ == "__main__":
    main()
