"""What the plans of the published recipes come to: shapes, padding, utterances a step, steps.

    python benchmarks/recipes.py [--write docs/recipes.md]

Each experiment is composed, and its batches are planned for a manifest of as many utterances as its corpus has, no audio and no model
needed. LibriSpeech's lengths are those of benchmarks/corpus.py; Common Voice's are approximated from its published hours, and so are
all numbers of labels: 14 characters a second of English and 12 of others, and tokens a character as LABELS says. Prints the two tables of
docs/recipes.md, or writes them into it; as the last line, a JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import corpus
import numpy as np
from numpy.typing import NDArray

from asr import composition, config_files
from asr.batching import FILLER, groups_by_length
from asr.features import InputLength
from asr.pipeline import Pipeline
from asr.planning import DECODER_SHARE, Sizes

CONF = config_files.CONF / "experiment"
START, END = "<!-- tables: python benchmarks/recipes.py --write docs/recipes.md -->", "<!-- end of the tables -->"
COMMON_VOICE_QUANTILES = ((0, 1.1), (0.1, 2.6), (0.25, 3.3), (0.5, 4.2), (0.75, 5.3), (0.9, 6.7), (0.99, 9.2), (1, 15.0))
"""Seconds below which a share of Common Voice's clips lies: a guess whose mean, 4.4 s, is that of the Hindi hours."""


@dataclass(frozen=True)
class Corpus:
    """How many training utterances there are, how long they are, and how many characters are said in a second."""

    utterances: int
    characters_a_second: float
    source: str


CORPORA = {
    "librispeech_clean_100": Corpus(28539, 14, "LibriSpeech's train-clean-100, of openslr.org/12"),
    "common_voice_tr_parquet": Corpus(3478, 12, "Common Voice 6.1's Turkish train and validation"),
    "common_voice_hi": Corpus(6540, 12, "Common Voice 11's Hindi train and validation, 8 h (huggingface.co/blog/fine-tune-whisper)"),
}
LABELS = {"CTCModel": (1.0, 0), "EncoderDecoderModel": (0.25, 1), "WhisperModel": (1.2, 4)}
"""Tokens a character, and tokens beside them: characters, BART's pieces of words and Whisper's pieces of Devanagari."""
PUBLISHED = {
    "librispeech_ctc_hpu1": "1 HPU: about 1 h 20, loss 0.39, WER 0.35 (later: 6 h, 0.059, 0.0423)",
    "librispeech_ctc_hpu8": "8 HPUs: about 49 min, loss 0.0615, WER 0.0448 (later: 0.0613, 0.0458)",
    "librispeech_ctc_hpu8_deepspeed": "none",
    "common_voice_tr_ctc_streaming": "4 V100: about 3 h 31, loss 0.35, WER 0.29",
    "librispeech_wav2vec2_bart_base_1": "1 V100: about 5 h, loss 0.405, WER 0.0728",
    "librispeech_wav2vec2_bart_base_8": "8 V100: 45 min, loss 0.405, WER 0.0728",
    "librispeech_wav2vec2_bart_large_8": "8 V100: 1 h 20, WER 0.0486",
    "whisper_small_hi_hpu1": "none for one card",
    "whisper_large_hi_hpu8": "none",
}


def experiments() -> list[str]:
    return list(PUBLISHED)


@lru_cache
def described(version: str) -> tuple[Pipeline, str]:
    """Return the objects of `name/v1`, and its dataset option."""
    composed = composition.compose([f"experiment={version}"], with_hydra=True)
    return Pipeline.of(composition.to_container(composed)), str(composed.hydra.runtime.choices.dataset)


@lru_cache
def manifest(name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the seconds of every utterance of a corpus' training split, shuffled, and its characters."""
    facts, dice = CORPORA[name], np.random.default_rng(0)
    shares = np.linspace(0, 1, facts.utterances)
    at, quantiles = zip(*COMMON_VOICE_QUANTILES, strict=True)
    seconds = corpus.seconds_at("train", shares) if name.startswith("librispeech") else np.interp(shares, at, quantiles)
    seconds = dice.permutation(seconds)
    speed = np.clip(dice.normal(1, 0.15, len(seconds)), 0.5, 1.5)
    return seconds, np.maximum(1, (seconds * facts.characters_a_second * speed).astype(np.int64))


def sizes_of(pipeline: Pipeline, option: str) -> tuple[Sizes, NDArray[np.float64]]:
    """Return the sizes of what a recipe trains on, and the share of each input that is audio."""
    seconds, characters = manifest(option)
    kind = type(pipeline.model).__name__
    length = InputLength.of({"feature_extractor_type": "WhisperFeatureExtractor"} if kind == "WhisperModel" else {})
    tokens, beside = LABELS[kind]
    labels = np.ceil(characters * tokens).astype(np.int64) + beside
    kept = np.ones(len(seconds), bool)
    for most in (pipeline.dataset.max_duration_in_seconds, pipeline.batching.most_seconds, length.window_seconds):
        kept &= seconds <= (np.inf if most is None else most)
    if pipeline.batching.most_labels is not None:
        kept &= labels <= pipeline.batching.most_labels
    lengths = np.array([length(s) for s in seconds[kept]], np.int64)
    audio = np.array([length.audio_frames(s) for s in seconds[kept]]) / lengths
    share = DECODER_SHARE if pipeline.model.generates else 0.0
    return Sizes(lengths, labels[kept], length, length.unit, share), audio


def batches(pipeline: Pipeline, sizes: Sizes) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (length, labels, rows) of every batch of an epoch; a stream's are full, and of a sample's shapes."""
    args, ranks = pipeline.trainer.args, pipeline.topology.num_processes
    batch_size = args["per_device_train_batch_size"]
    if pipeline.dataset.streaming and pipeline.batching.STATIC:
        sample = Sizes(sizes.lengths[:2000], sizes.labels[:2000], sizes.length_of, sizes.unit, sizes.label_share)
        longest = pipeline.dataset.max_duration_in_seconds
        shapes = pipeline.batching.shapes_of_stream(sample, batch_size, longest_seconds=longest, most_labels=None)
        for shape in shapes:
            smaller = [other for other in shapes if other < shape]
            fits = (sizes.lengths <= shape.length) & (sizes.labels <= shape.labels)
            for other in smaller:
                fits &= (sizes.lengths > other.length) | (sizes.labels > other.labels)
            rows = np.flatnonzero(fits).tolist()
            yield from (
                (shape.length, shape.labels, rows[i : i + shape.rows]) for i in range(0, len(rows) // shape.rows * shape.rows, shape.rows)
            )
        return
    given = argparse.Namespace(**{"dataloader_drop_last": False, **args})
    sampler = pipeline.batching.train(sizes, batch_size, seed=0, world_size=ranks, args=given)
    assert pipeline.batching.STATIC or groups_by_length(given) or pipeline.dataset.streaming
    for slots in sampler:
        rows = [slot.row for slot in slots if slot.row != FILLER]
        shape = slots[0].shape
        length = shape.length if shape else int(sizes.lengths[rows].max())
        labels = shape.labels if shape else int(sizes.labels[rows].max())
        yield length, labels, [slot.row for slot in slots]


@dataclass(frozen=True)
class Figures:
    """What a recipe's batches come to."""

    utterances: int
    shapes: int
    audio_share: float
    label_share: float
    utterances_a_step: float
    steps: int
    epochs: float


def figures(version: str) -> Figures:
    """Return what a recipe's batches come to."""
    pipeline, option = described(version)
    sizes, audio_in = sizes_of(pipeline, option)
    args, ranks = pipeline.trainer.args, pipeline.topology.num_processes
    made = list(batches(pipeline, sizes))
    real = [row for _, _, rows in made for row in rows if row != FILLER]
    audio = float((sizes.lengths[real] * audio_in[real]).sum() / sum(length * len(rows) for length, _, rows in made))
    labels = float(sizes.labels[real].sum() / sum(width * len(rows) for _, width, rows in made))
    a_step = ranks * args.get("gradient_accumulation_steps", 1)
    steps_an_epoch = -(-len(made) // a_step)
    steps = args["max_steps"] if args.get("max_steps", -1) > 0 else round(steps_an_epoch * args["num_train_epochs"])
    shapes = len({(length, width) for length, width, _ in made})
    return Figures(
        len(sizes.lengths), shapes, audio, labels, len(real) / len(made) * a_step, steps, steps * len(real) / len(made) * a_step / len(real)
    )


# ---- the tables ----


def length_of(args: dict[str, Any]) -> str:
    return f"{args['max_steps']} steps" if args.get("max_steps", -1) > 0 else f"{args['num_train_epochs']} epochs"


def where(pipeline: Pipeline) -> str:
    topology = pipeline.topology
    started = f", {topology.launcher}" if topology.has_launcher else ""
    return f"{topology.num_processes} {'HPU' if topology.device == 'hpu' else 'GPU'}{started}"


def precision(pipeline: Pipeline) -> str:
    args = pipeline.trainer.args
    if pipeline.topology.deepspeed:
        return "DeepSpeed's bf16"
    autocast = "autocast" if pipeline.gaudi_config.use_torch_autocast and pipeline.topology.device == "hpu" else "fp32"
    return next((name for name in ("bf16", "fp16") if args.get(name)), autocast)


def graphs(args: dict[str, Any]) -> str:
    stages = [stage for stage in ("training", "inference") if args.get(f"use_hpu_graphs_for_{stage}")]
    return " and ".join(stages) or "none"


def settings(version: str) -> dict[str, str]:
    """Return what a recipe says, as the table has it."""
    pipeline, _ = described(version)
    args = pipeline.trainer.args
    batch = f"{args['per_device_train_batch_size']}"
    if args.get("gradient_accumulation_steps", 1) > 1:
        batch += f" x {args['gradient_accumulation_steps']}"
    return {
        "on": where(pipeline),
        "batching": type(pipeline.batching).__name__.lower(),
        "batch, training / evaluation": f"{batch} / {args['per_device_eval_batch_size']}",
        "length": length_of(args),
        "learning rate, warmup": f"{args['learning_rate']:g}, {args.get('warmup_steps', 0)}",
        "precision": precision(pipeline),
        "graphs": graphs(args),
    }


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def settings_table() -> str:
    """Return the table of what the recipes say: v1 beside v2, with what was published."""
    text = row(["recipe", "value", "v1", "v2"]) + row(["---"] * 4)
    for name in experiments():
        first, second = settings(f"{name}/v1"), settings(f"{name}/v2")
        text += row([name, "published", PUBLISHED[name], "-"])
        for what in first:
            text += row(["", what, first[what], second[what] if second[what] != first[what] else "as v1"])
    return text


def figures_table() -> tuple[str, dict[str, dict[str, float]]]:
    """Return the table of what the plans come to, and the figures."""
    head = [
        "recipe",
        "version",
        "utterances",
        "shapes",
        "audio in the input",
        "labels in their places",
        "utterances a step",
        "steps",
        "epochs",
    ]
    text, found = row(head) + row(["---"] * len(head)), {}
    for name in experiments():
        for version in ("v1", "v2"):
            of = figures(f"{name}/{version}")
            found[f"{name}/{version}"] = vars(of)
            share = [f"{of.audio_share:.1%}", f"{of.label_share:.1%}"]
            text += row(
                [
                    name,
                    version,
                    str(of.utterances),
                    str(of.shapes),
                    *share,
                    f"{of.utterances_a_step:.1f}",
                    str(of.steps),
                    f"{of.epochs:.1f}",
                ]
            )
    return text, found


def with_tables(document: str, tables: str) -> str:
    """Return a document with these tables between their marks."""
    before, _, rest = document.partition(START)
    return f"{before}{START}\n\n{tables}\n{END}{rest.partition(END)[2]}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the document whose tables are made anew")
    asked = parser.parse_args(arguments)
    text, found = figures_table()
    tables = f"## What they say\n\n{settings_table()}\n## What their plans come to\n\n{text}"
    if asked.write:
        asked.write.write_text(with_tables(asked.write.read_text(encoding="utf-8"), tables), encoding="utf-8")
    else:
        print(tables)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
