"""The data of a run, prepared once by its parent: no rank waits for another that prepares, and a resumed run has the same.

In: the described pipeline. Out: manifests, label ids and, where it is built, the vocabulary in the run directory, and what data there
is in run.json.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import config, fitting, manifest, runs, sharing, vocabulary, whisper_tokenizer
from asr.ctc import CTCModel
from asr.errors import ConfigError, DataError
from asr.labels import Labels
from asr.pipeline import Pipeline
from asr.planning import DECODER_SHARE, Sizes
from asr.runs import Run
from asr.streaming import plans, scan
from asr.streaming.dealing import Dealing
from asr.streaming.rules import Frames, Rules

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


SHARED = ("dataset", "text", "vocabulary", "augment", "batching", "model", "stages")
"""What of a configuration decides what is prepared, but for streams, whose shards are dealt by more."""
FACTS = ("dataset", "text", "vocabulary")
"""What of it stands in run.json."""


def prepare(pipeline: Pipeline, run: Run, shared: Path | None = None) -> None:
    """Write the manifests, the labels and, where it is built, the vocabulary; record what data there is.

    With `shared`, a folder of several runs, what a run of the same data, text, vocabulary and model has prepared is taken from there,
    and put there otherwise; one that prepares is waited for.
    """
    run.save(trust_remote_code=pipeline.model.trust_remote_code)  # a tokenizer's code runs here already
    pipeline.augment.check_files()
    if shared is None or pipeline.streams:
        _prepare(pipeline, run)
        return
    kept = runs.config_sha256({key: run.config[key] for key in SHARED})[:16]
    with sharing.Shared(shared, kept) as place:
        if place.facts is None:
            _prepare(pipeline, run)
            place.put(run.path, PREPARED, {key: run.record[key] for key in FACTS})
        else:
            log.info("data: as another job of this sweep prepared it")
            place.take(run.path)
            run.save(**place.facts)


def _prepare(pipeline: Pipeline, run: Run) -> None:
    source, rules = pipeline.dataset, pipeline.text
    limits = {"train": source.max_train_samples, "eval": source.max_eval_samples}
    with config.under("dataset"):
        scanned = _scan(pipeline) if pipeline.streams else None
        tables = {
            role: scanned.table if scanned and role == "train" else manifest.build(source, split, limit=limits[role], normalise=rules)
            for role, split in pipeline.splits.items()
        }
    transcripts = {role: [rules(u.text) for u in table.utterances] for role, table in tables.items()}
    labels = _labels(pipeline, run, transcripts)
    described = {}
    for role, table in tables.items():
        reasons = fitting.unfit([u.seconds or 0.0 for u in table.utterances], labels[role], bounds(pipeline, role))
        kept = table.without(reasons)
        manifest.check_not_empty(kept, source)
        rows = labels[role].select([i for i in range(len(labels[role])) if i not in reasons]) if reasons else labels[role]
        kept.save(manifest_path(run, role))
        rows.save(labels_path(run, role))
        described[role] = {"split": table.split, **kept.describe(), "labels": manifest.spread(rows.lengths.tolist())}
        sampled = f", a sample of about {scanned.shards.num_utterances}" if scanned and role == "train" and not scanned.is_whole else ""
        log.info("%s (%s): %d utterances, %.2f h%s", role, table.split, len(kept.utterances), kept.hours, sampled)
        for reason, count in kept.reasons.items():
            log.warning("%s (%s): %d left out: %s", role, table.split, count, reason)
        if scanned and role == "train":
            described[role] |= _prepare_stream(pipeline, run, scanned, kept, rows)
    run.save(
        dataset={"name": source.name, "fingerprint": source.fingerprint(), "splits": described},
        text={"rules": asdict(rules), "scoring": "references and hypotheses are normalised by these rules"},
    )


def _scan(pipeline: Pipeline) -> scan.Scan:
    """Look at a sample of the training split, which is streamed."""
    source: Any = pipeline.dataset  # one of asr.sources.sharded, or a team's own that does the same
    shards = source.shards(source.train_split)
    if not shards.units:
        raise DataError(f"dataset {source.name}, split {source.train_split!r}: it has no shards.")
    order = Dealing(len(shards.units), 1, pipeline.seed).order(0)
    return scan.scan(shards, source, source.train_split, most=source.sample_utterances, order=order, normalise=pipeline.text)


def _prepare_stream(pipeline: Pipeline, run: Run, scanned: scan.Scan, sample: manifest.Manifest, labels: Labels) -> dict[str, Any]:
    """Write the shards and the plan of the stream; return what run.json says of them."""
    import numpy as np

    args, length, stretch = pipeline.trainer.args, pipeline.model.input_length(), pipeline.augment.longest_stretch
    longest = pipeline.dataset.max_duration_in_seconds
    lengths = np.array([length((u.seconds or 0.0) * stretch) for u in sample.utterances], np.int64)
    processes = pipeline.topology.num_processes
    with config.under("batching"):
        plan = plans.planned(
            pipeline.batching,
            Sizes(lengths, labels.lengths, length, length.unit, DECODER_SHARE if pipeline.model.generates else 0.0),
            args.get("per_device_train_batch_size", 8),
            longest_seconds=None if longest is None else longest * stretch,
            most_labels=bounds(pipeline, "train").decoder_labels,
            num_readers=processes * max(1, args.get("dataloader_num_workers", 0)),
            num_processes=processes,
            is_whole=scanned.is_whole,
        )
    scanned.shards.save(units_path(run))
    plan.save(plan_path(run), {"made_from": f"{len(lengths)} utterances of {pipeline.dataset.name}", "input": asdict(length)})
    shards = len({unit.shard for unit in scanned.shards.units})
    log.info("train: %d shards with %d units, %s utterances", shards, len(scanned.shards.units), scanned.shards.num_utterances)
    number = scanned.shards.num_utterances
    return {"streamed": {"shards": shards, "units": len(scanned.shards.units), "utterances": number, "sampled": not scanned.is_whole}}


def stream_rules(pipeline: Pipeline, tokenizer: PreTrainedTokenizerBase) -> Rules:
    """Return what decides, utterance by utterance, what of a stream is trained on."""
    encode = pipeline.vocabulary.encode if isinstance(pipeline.model, CTCModel) else pipeline.model.labels
    return Rules(pipeline.dataset, pipeline.text, partial(encode, tokenizer), bounds(pipeline, "train"))


def _labels(pipeline: Pipeline, run: Run, transcripts: Mapping[str, Sequence[str]]) -> dict[str, Labels]:
    """Return the label ids of every split, tokenised here and nowhere else; write and record the vocabulary."""
    every = [transcript for rows in transcripts.values() for transcript in rows]
    kind = pipeline.model.tokenizer_kind
    if pipeline.builds_vocabulary and kind != "whisper":
        built = pipeline.vocabulary.build(every, sequences=kind == "characters")
        runs.write_json(run.path / vocabulary.VOCABULARY_FILE, built)
        run.save(vocabulary={"built_from": sorted(transcripts), "size": len(built)})
        return {
            role: Labels.of(pipeline.vocabulary.labels(built, rows, sequences=kind == "characters")) for role, rows in transcripts.items()
        }
    if pipeline.builds_vocabulary:
        whisper_tokenizer.make(run.path / whisper_tokenizer.FOLDER)
    tokenizer = pipeline.tokenizer(run.path)
    if not isinstance(pipeline.model, CTCModel):
        run.save(vocabulary={"given": not pipeline.builds_vocabulary, "size": len(tokenizer)})
        return {role: Labels.of([pipeline.model.labels(tokenizer, row) for row in rows]) for role, rows in transcripts.items()}
    if pipeline.vocabulary.phoneme_language and not hasattr(tokenizer, "phonemize"):
        raise ConfigError(f"{type(tokenizer).__name__} makes no phonemes; leave it null.", key="vocabulary.phoneme_language")
    _report_unknown(tokenizer, every, run)
    return {role: Labels.of(pipeline.vocabulary.encode(tokenizer, row) for row in rows) for role, rows in transcripts.items()}


def bounds(pipeline: Pipeline, role: str) -> fitting.Bounds:
    """Return what an utterance must fit into.

    More labels than frames: CTC's loss is infinite, so training leaves it out. An evaluation keeps it: leaving out
    what can't be recognised would flatter the error rate. Audio beyond Whisper's window likewise.
    """
    batching, slowest = pipeline.batching, pipeline.augment.longest_stretch if role == "train" else 1.0
    seconds = None if pipeline.model.input_length().window_seconds else batching.most_seconds  # a window has one length
    found = fitting.Bounds(shape_seconds=seconds, shape_labels=batching.most_labels, slowest=slowest)
    found = replace(found, decoder_labels=pipeline.model.most_labels())  # it has no positions for more, in an evaluation neither
    if role != "train":
        return found
    length, count = pipeline.model.input_length(), pipeline.model.frame_count()
    if count is None:
        return replace(found, window_seconds=pipeline.model.most_seconds())
    return replace(found, frames=Frames(length, count), fastest=pipeline.augment.shortest_stretch)


def _report_unknown(tokenizer: PreTrainedTokenizerBase, transcripts: Sequence[str], run: Run) -> None:
    """Say which characters of the transcripts a given tokenizer can't spell, with counts; record them."""
    unknown = vocabulary.unknown_characters(tokenizer, transcripts)
    if unknown:
        listed = ", ".join(f"{c!r} {n} times" for c, n in unknown.items())
        log.warning("the tokenizer lacks %d characters of the transcripts: %s; see text.case and text.remove", len(unknown), listed)
    run.save(vocabulary={"given": True, "size": len(tokenizer), "unknown_characters": unknown})


def manifest_path(run: Run, role: str) -> Path:
    """Return where the table of a role's utterances lies."""
    return run.path / "manifest" / f"{role}.jsonl"


def labels_path(run: Run, role: str) -> Path:
    """Return where their label ids lie."""
    return run.path / "manifest" / f"{role}.labels.npz"


PREPARED = ("manifest", vocabulary.VOCABULARY_FILE, whisper_tokenizer.FOLDER)
"""What is prepared, in a run's directory."""


def units_path(run: Run) -> Path:
    """Return where it is written down what a stream reads."""
    return run.path / "manifest" / "train.units.json"


def plan_path(run: Run) -> Path:
    """Return where the shapes of a stream's batches lie; another run's batching.plan_file takes them from there."""
    return run.path / "manifest" / "train.plan.json"
