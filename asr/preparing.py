"""The data of a run, prepared once by its parent: no rank waits for another that prepares, and a resumed run has the same.

In: the described pipeline. Out: manifests, label ids and, where it is built, the vocabulary in the run directory, and what data there
is in run.json.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from asr import config, fitting, manifest, runs, vocabulary, whisper_tokenizer
from asr.ctc import CTCModel
from asr.errors import ConfigError
from asr.labels import Labels
from asr.pipeline import Pipeline
from asr.runs import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def prepare(pipeline: Pipeline, run: Run) -> None:
    """Write the manifests, the labels and, where it is built, the vocabulary; record what data there is."""
    run.save(trust_remote_code=pipeline.model.trust_remote_code)  # a tokenizer's code runs here already
    pipeline.augment.check_files()
    source, rules = pipeline.dataset, pipeline.text
    limits = {"train": source.max_train_samples, "eval": source.max_eval_samples}
    with config.under("dataset"):
        tables = {role: manifest.build(source, split, limit=limits[role], normalise=rules) for role, split in pipeline.splits.items()}
    transcripts = {role: [rules(u.text) for u in table.utterances] for role, table in tables.items()}
    labels = _labels(pipeline, run, transcripts)
    described = {}
    for role, table in tables.items():
        reasons = fitting.unfit([u.seconds or 0.0 for u in table.utterances], labels[role], _bounds(pipeline, role))
        kept = table.without(reasons)
        manifest.check_not_empty(kept, source)
        rows = labels[role].select([i for i in range(len(labels[role])) if i not in reasons]) if reasons else labels[role]
        kept.save(manifest_path(run, role))
        rows.save(labels_path(run, role))
        described[role] = {"split": table.split, **kept.describe(), "labels": manifest.spread(rows.lengths.tolist())}
        log.info("%s (%s): %d utterances, %.2f h", role, table.split, len(kept.utterances), kept.hours)
        for reason, count in kept.reasons.items():
            log.warning("%s (%s): %d left out: %s", role, table.split, count, reason)
    run.save(
        dataset={"name": source.name, "fingerprint": source.fingerprint(), "splits": described},
        text={"rules": asdict(rules), "scoring": "references and hypotheses are normalised by these rules"},
    )


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


def _bounds(pipeline: Pipeline, role: str) -> fitting.Bounds:
    """Return what an utterance must fit into.

    More labels than frames: CTC's loss is infinite, so training leaves it out. An evaluation keeps it: leaving out
    what can't be recognised would flatter the error rate. Audio beyond Whisper's window likewise.
    """
    batching, slowest = pipeline.batching, pipeline.augment.longest_stretch if role == "train" else 1.0
    seconds = None if pipeline.model.input_length().window_seconds else batching.most_seconds  # a window has one length
    bounds = fitting.Bounds(shape_seconds=seconds, shape_labels=batching.most_labels, slowest=slowest)
    bounds = replace(bounds, decoder_labels=pipeline.model.most_labels())  # it has no positions for more, in an evaluation neither
    if role != "train":
        return bounds
    length, count = pipeline.model.input_length(), pipeline.model.frame_count()
    if count is None:
        return replace(bounds, window_seconds=pipeline.model.most_seconds())
    return replace(bounds, frames=lambda seconds: count([length(s) for s in seconds]), fastest=pipeline.augment.shortest_stretch)


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
