"""Audio seconds a second of one rank and of two, and what up to 512 ranks would wait for the slowest of them.

    python benchmarks/scaling.py [--rounds 3] [--train 256] [--batch-size 8] [--model wav2vec2_bert_tiny] [--utterances 281241]

Measured: launches of `python launch.py`, one thread a rank, no loader workers, a whole run each. A round has one rank, two
ranks, and two runs of one rank side by side, which have nothing to say to each other: what they reach is what the machine
gives, and memory and clock that one process had for itself count in it. Two ranks train twice the epochs, so that
each takes as many batches as one alone and the slower first steps weigh the same. train_audio_seconds_per_second is all ranks'
together, from the start of the first step (models are loaded and wrapped) to the end of the last; decoding counts, fillers
don't. Efficiency is the speed of two ranks over twice that of one in the same round; medians over rounds. What other processes
had of the machine meanwhile is said too, in cores: with more than a few hundredths of one the ratios are theirs, not ours.

Simulated: an epoch of LibriSpeech's 960 hours (lengths alone) through the samplers that train, batch i going to rank i
modulo the ranks as accelerate deals them. A rank's time for a batch is its padded work as asr.planning counts it, rows times
(1 - s) w + s w^2 / longest; s, --attention-share, is about what self-attention takes of a wav2vec 2.0 base at 20 s. A step lasts
as long as its slowest rank; waiting is what the others are idle of it, over the epoch's time. The gradients' exchange,
a rank's own jitter and host work are left out. `useful` is what it comes to: the time that the audio alone would take, without
padding, fillers and waiting, over the epoch's. Arms:
    synchronised     batching=buckets: all ranks have the same shape at the same step
    unsynchronised   the same buckets planned without ranks, each rank its own at random
    grouped          batching=longest with trainer.args.group_by_length: padded to the longest row, of like length
    shuffled         batching=longest

As the last line, a JSON object. `--rounds 0` simulates alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import corpus
import numpy as np

from asr.batching import FILLER, Batches, Buckets, LengthGroupedBatches, PlannedBatches, Slot
from asr.planning import Sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
LONGEST_SECONDS = 20.0
LIBRISPEECH_UTTERANCES = 281_241
RANKS = (8, 64, 512)
OVERRIDES = (
    "dataset=jsonl dataset.train_split=train.jsonl dataset.eval_split=dev.jsonl stages=[train] topology=cpu topology.threads_per_rank=1 "
    "trainer.args.save_strategy=no trainer.args.report_to=none trainer.args.disable_tqdm=true"
).split()


def launch(run_dir: Path, root: Path, ranks: int, asked: argparse.Namespace) -> subprocess.Popen[str]:
    """Start a run; the caches are below its parent folder.

    In a session of its own, as torchrun starts each rank: Linux shares a busy machine among sessions (sched_autogroup), so that
    two ranks would get more of it than two runs in ours.
    """
    command = [
        *(sys.executable, str(ROOT / "launch.py"), *OVERRIDES),
        f"dataset.root='{root}'",
        f"hydra.run.dir='{run_dir}'",
        f"model={asked.model}",
        f"trainer.args.per_device_train_batch_size={asked.batch_size}",
        f"trainer.args.num_train_epochs={asked.epochs * ranks}",
        f"topology.world_size={ranks}",
        *asked.override,
    ]
    environment = {**os.environ, "ASR_CACHE": str(run_dir.parent / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=run_dir.parent, env=environment, start_new_session=True, **streams)


def metrics_of(process: subprocess.Popen[str], run_dir: Path) -> dict[str, float]:
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended with exit code {process.returncode}:\n{said[-3000:]}")
    return dict(json.loads((run_dir / "metrics.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Measured:
    """The metrics.json of runs side by side, and the cores that others had meanwhile."""

    runs: Sequence[dict[str, float]]
    other_cores: float

    @property
    def speed(self) -> float:
        return sum(run["train_audio_seconds_per_second"] for run in self.runs)


class Others:
    """What other processes take of this machine's cores between entering and leaving; runs within have to end within. Linux only."""

    def __enter__(self) -> Others:
        self.begin = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        busy, ours, wall = (end - begin for begin, end in zip(self.begin, self._now(), strict=True))
        self.cores = (busy - ours) / wall

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Return seconds: of all cores busy or taken by another virtual machine, of our ended descendants', and the time."""
        ticks = [int(count) for count in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        ours = resource.getrusage(resource.RUSAGE_CHILDREN)
        idle = ticks[3] + ticks[4]
        return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK"), ours.ru_utime + ours.ru_stime, time.perf_counter()


def one_round(root: Path, asked: argparse.Namespace) -> dict[str, Measured]:
    """Return what each arm's runs measured; the runs of an arm go on side by side."""
    found = {}
    for name, worlds in {"one rank": (1,), "two ranks": (2,), "two runs": (1, 1)}.items():
        with tempfile.TemporaryDirectory() as folder, Others() as others:
            runs = [Path(folder, f"{i}", "run") for i in range(len(worlds))]
            for run in runs:
                run.parent.mkdir()
            processes = [launch(run, root, world, asked) for run, world in zip(runs, worlds, strict=True)]
            try:
                metrics = [metrics_of(process, run) for process, run in zip(processes, runs, strict=True)]
            finally:
                for process in processes:  # Ctrl-C doesn't reach their sessions; nothing happens to one that has ended
                    process.terminate()
                    process.wait()
        found[name] = Measured(metrics, others.cores)
    return found


def measure(asked: argparse.Namespace) -> dict[str, object]:
    """Launch and measure every round, print the table, and return the figures."""
    root = corpus.make(asked.corpus, train=asked.train, dev=1, audio_format="wav", longest_seconds=LONGEST_SECONDS)
    rounds = [one_round(root, asked) for _ in range(asked.rounds)]
    shares = {name: [r[name].speed / (2 * r["one rank"].speed) for r in rounds] for name in rounds[0]}
    speeds = {name: statistics.median(r[name].speed for r in rounds) for name in shares}
    others = {name: statistics.median(r[name].other_cores for r in rounds) for name in shares}
    print("measured     audio seconds a second   over twice one rank's: median, least, most   audio in input, %   seconds   others, cores")
    for name, share in shares.items():
        runs = [run for r in rounds for run in r[name].runs]
        padding, seconds = (statistics.median(run[key] for run in runs) for key in ("train_padding_efficiency", "train_runtime"))
        print(
            f"{name:12} {speeds[name]:22.1f} {statistics.median(share):30.3f}, {min(share):5.3f}, {max(share):5.3f}"
            f" {100 * padding:19.1f} {seconds:9.1f} {others[name]:15.2f}"
        )
    return {
        "efficiency_2": statistics.median(shares["two ranks"]),
        "efficiency_2_of_rounds": shares["two ranks"],
        "efficiency_of_two_runs": statistics.median(shares["two runs"]),
        "audio_seconds_per_second": speeds,
        "other_cores": others,
    }


@dataclass(frozen=True)
class Epoch:
    """What an epoch of so many ranks takes, in the unit of `Work`."""

    num_steps: int
    seconds: float
    waiting_seconds: float
    """The mean of the ranks."""
    useful_seconds: float
    """What the audio alone would take."""
    filler_share: float
    """Of all rows."""

    def figures(self) -> dict[str, float]:
        return {
            "steps": self.num_steps,
            "waiting": self.waiting_seconds / self.seconds,
            "fillers": self.filler_share,
            "useful": self.useful_seconds / self.seconds,
        }


@dataclass(frozen=True)
class Work:
    """The padded work of a batch, in seconds of the longest utterance's."""

    lengths: NDArray[np.int64]
    attention_share: float

    def of_rows(self, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        share = self.attention_share
        return ((1 - share) * lengths + share * lengths.astype(float) ** 2 / self.lengths.max()) / corpus.RATE_HZ

    def of_batch(self, batch: Sequence[Slot]) -> tuple[int, int, int]:
        """Return the padded length, the rows, and how many of these are fillers."""
        shape = batch[0].shape
        real = [slot.row for slot in batch if slot.row != FILLER]
        return shape.length if shape else int(self.lengths[real].max()), len(batch), len(batch) - len(real)


def simulate(batches: Batches, work: Work, ranks: int) -> Epoch:
    """Deal an epoch's batches to the ranks; a last step that lacks batches takes them from the start, as accelerate does."""
    padded, rows, fillers = np.array([work.of_batch(batch) for batch in batches]).T
    num_steps = -(-len(rows) // ranks)
    taken = np.fromiter(islice(cycle(range(len(rows))), num_steps * ranks), np.int64)
    seconds = (work.of_rows(padded) * rows)[taken].reshape(num_steps, ranks)
    slowest = seconds.max(axis=1, keepdims=True)
    return Epoch(
        num_steps=num_steps,
        seconds=float(slowest.sum()),
        waiting_seconds=float((slowest - seconds).mean(axis=1).sum()),
        useful_seconds=float(work.of_rows(work.lengths).sum() / ranks),
        filler_share=float(fillers[taken].sum() / rows[taken].sum()),
    )


def arms(sizes: Sizes, ranks: int, asked: argparse.Namespace) -> Iterator[tuple[str, Batches]]:
    """Yield the sampler of each arm, as the configuration would make it for so many ranks."""
    buckets = Buckets(attention_share=asked.attention_share)
    lengths = sizes.lengths.tolist()
    yield "synchronised", PlannedBatches(buckets.plan(sizes, asked.batch_size, world_size=ranks), seed=0)
    yield "unsynchronised", PlannedBatches(buckets.plan(sizes, asked.batch_size), seed=0)
    yield "grouped", LengthGroupedBatches(lengths, asked.batch_size, world_size=ranks)
    yield "shuffled", LengthGroupedBatches(lengths, asked.batch_size, group_by_length=False, world_size=ranks)


def simulations(asked: argparse.Namespace) -> dict[str, object]:
    """Simulate every arm for every number of ranks, print the table, and return the figures."""
    seconds = corpus.lengths("train", asked.utterances, LONGEST_SECONDS)
    lengths = np.rint(seconds * corpus.RATE_HZ).astype(np.int64)
    sizes = Sizes(lengths, np.rint(seconds * corpus.CHARACTERS_A_SECOND).astype(np.int64), lambda s: round(s * corpus.RATE_HZ))
    work = Work(lengths, asked.attention_share)
    found = {(name, ranks): simulate(batches, work, ranks).figures() for ranks in RANKS for name, batches in arms(sizes, ranks, asked)}
    print(f"simulated        ranks   steps an epoch   waiting, %   fillers, % of rows   useful, %      ({asked.utterances} utterances)")
    for (name, ranks), row in found.items():
        print(
            f"{name:15} {ranks:6} {row['steps']:16} {100 * row['waiting']:12.2f} {100 * row['fillers']:21.2f} {100 * row['useful']:11.2f}"
        )
    names = list(dict.fromkeys(name for name, _ in found))
    return {
        **{f"waiting_512_{name}": found[name, 512]["waiting"] for name in names},
        **{f"useful_512_{name}": found[name, 512]["useful"] for name in names},
        "simulated": {name: {str(ranks): found[name, ranks] for ranks in RANKS} for name in names},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of launches; 0 simulates alone")
    parser.add_argument("--train", type=int, default=256, help="utterances of the launches")
    parser.add_argument("--epochs", type=int, default=1, help="of one rank; two take twice as many")
    parser.add_argument("--batch-size", type=int, default=8, help="per device")
    parser.add_argument("--model", default="wav2vec2_bert_tiny", help="an option of conf/model")
    parser.add_argument("--override", nargs="*", default=[], help="further overrides for all launches")
    parser.add_argument("--utterances", type=int, default=LIBRISPEECH_UTTERANCES, help="of the simulation")
    parser.add_argument("--attention-share", type=float, default=0.2, help="of the longest utterance's work, in the simulation")
    parser.add_argument("--corpus", type=Path, default=corpus.DEFAULT_FOLDER, help="where synthetic audio is made and kept")
    asked = parser.parse_args(arguments)
    simulated = simulations(asked)
    measured = measure(asked) if asked.rounds else {"efficiency_2": None}
    print(json.dumps(measured | simulated))


if __name__ == "__main__":
    main()
