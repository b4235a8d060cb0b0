"""What a worker does with a prepared run: it builds the trainer, trains and evaluates.

In: a run directory with its configuration, manifest and vocabulary. Out: model/, checkpoints, metrics and predictions in it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from asr import (
    checkpoints,
    config,
    ctc_outputs,
    early_stopping,
    engines,
    failures,
    freezing,
    history,
    lora,
    manifest,
    metrics,
    permissions,
    preparing,
    runs,
    seq2seq_outputs,
    stops,
    trackers,
    trainer,
    whisper_tokenizer,
)
from asr.collate import Collator, DecoderStart, UtteranceDataset
from asr.errors import CheckpointError, DataError
from asr.labels import Labels
from asr.pipeline import Pipeline
from asr.preemption import Preemption
from asr.ranks import Rank
from asr.runs import Run
from asr.spec_augment import takes_masks
from asr.streaming.dataset import FORMATS, StreamedDataset, Taste
from asr.streaming.plans import StreamPlan
from asr.streaming.shards import Shards

log = logging.getLogger(__name__)


def work(run: Run, rank: Rank | None = None) -> None:
    """Train and evaluate a prepared run: the worker's part. What a run writes once is written by the first rank."""
    rank = rank or Rank()
    pipeline = Pipeline.of(run.config)
    log.info("importing %s: about ten seconds", engines.engine(pipeline.trainer.engine).LIBRARIES)
    pipeline.topology.apply_environment()
    trackers.apply_environment(pipeline.trainer.args.get("report_to"), run.path, pipeline.experiment_name)
    speech_trainer, scorer = build(pipeline, run)
    parameters = freezing.trained_parameters(speech_trainer.model)
    facts = {"trainer_class": trainer.class_path(speech_trainer), "parameters": parameters}
    log.info("trainer: %s on %s", facts["trainer_class"], speech_trainer.args.device)
    share = 100 * parameters["trained"] / max(parameters["total"], 1)
    log.info("parameters: %s, of which %s are trained (%.3g %%)", f"{parameters['total']:,}", f"{parameters['trained']:,}", share)
    if rank.is_first:
        run.save(**facts)
        history.keep(speech_trainer, run.path)
    measured: dict[str, Any] = {}
    try:
        if "train" in pipeline.stages:
            measured |= train(speech_trainer, run, rank)
        if "evaluate" in pipeline.stages:
            measured |= evaluate(speech_trainer)
            found = metrics.intervals(scorer.predictions, pipeline.trainer.eval_metrics)
            measured |= {f"eval_{name}": value for name, value in found.items()}
    finally:  # too many of them are why a run ends
        if rank.is_first:
            history.save(speech_trainer, run.path)
            _list_undecodable(speech_trainer, run)
    _log_forwarded(measured)
    if rank.is_first:
        run.save(batches={phase: seen.describe() for phase, seen in speech_trainer.forwarded.items() if seen.batches})
        run.write_metrics(measured)
        if "evaluate" in pipeline.stages:
            run.write_predictions(scorer.predictions)
    speech_trainer.end()


def _list_undecodable(speech_trainer: Any, run: Run) -> None:
    for role, seen in speech_trainer.forwarded.items():
        known = speech_trainer.undecodable.known[role] | seen.bad
        if known:
            manifest.write_undecodable(preparing.manifest_path(run, role), known)


def build(pipeline: Pipeline, run: Run) -> tuple[Any, metrics.Scorer]:
    """Return the trainer of a prepared run, and the scorer that keeps its predictions."""
    import transformers

    transformers.utils.logging.enable_propagation()
    transformers.utils.logging.disable_default_handler()
    transformers.set_seed(pipeline.seed)
    engines.engine(pipeline.trainer.engine).prepare()  # before any model class is imported: on a Gaudi some are replaced
    tables = {role: manifest.Manifest.load(preparing.manifest_path(run, role), split) for role, split in pipeline.splits.items()}
    references = {role: [pipeline.text(u.text) for u in table.utterances] for role, table in tables.items()}
    tokenizer = pipeline.tokenizer(run.path)
    model = pipeline.model.load(tokenizer, new_head=pipeline.builds_vocabulary)
    processor = pipeline.model.processor(tokenizer, model)
    extractor = processor.feature_extractor
    datasets = {role: _dataset(pipeline, run, role, table, tokenizer, extractor) for role, table in tables.items()}
    if pipeline.vocabulary.phoneme_language:  # what is learnt is phonemes, so that is what is scored
        references["eval"] = tokenizer.batch_decode([row.tolist() for row in datasets["eval"].labels], group_tokens=False)
    if pipeline.model.tokenizer_kind == "whisper":
        references["eval"] = [whisper_tokenizer.without_timestamps(reference) for reference in references["eval"]]
    generates = pipeline.model.generates
    search = _search(pipeline, tokenizer)
    scorer = metrics.Scorer(
        tables["eval"].utterances,
        references["eval"],
        seq2seq_outputs.decoder(tokenizer, model.config.decoder_start_token_id) if generates else ctc_outputs.decoder(tokenizer),
        pipeline.text,
        pipeline.trainer.eval_metrics,
        datasets["eval"].labels.lengths.tolist() if generates else None,
        searches=search is not None,
    )
    collator = Collator.for_extractor(extractor).with_masks_for(model, pipeline.seed)
    if generates:
        collator = collator.for_decoder(DecoderStart(model.config.decoder_start_token_id, model.config.pad_token_id))
    if masks := pipeline.model.input_masks(model.config, pipeline.seed):
        collator = replace(collator, spec_augment=masks)
    model = takes_masks(model)
    if "train" in datasets:
        lora.check_reached(model, freezing.freeze_unused(model, collator.example(extractor)))
    speech_trainer = pipeline.trainer.build(
        model=model,
        processor=processor,
        data_collator=collator,
        train_dataset=datasets.get("train"),
        eval_dataset=datasets["eval"],
        compute_metrics=scorer,
        gaudi_config=pipeline.gaudi_config,
        batching=pipeline.batching,
        topology=pipeline.topology,
        seed=pipeline.seed,
        run_dir=run.path,
    )
    speech_trainer.search = search
    return speech_trainer, scorer


def _search(pipeline: Pipeline, tokenizer: Any) -> Any:
    """Return the search for an utterance's tokens; None takes the best of each frame, as a rehearsal's random weights do."""
    decoder: Any = pipeline.decoder
    if not decoder.searches or pipeline.rehearse:
        return None
    with config.under("decoder"):
        return decoder.search(tokenizer)


def _dataset(pipeline: Pipeline, run: Run, role: str, table: manifest.Manifest, tokenizer: Any, extractor: Any) -> Any:
    """Return what the trainer takes the rows of a split from."""
    labels = Labels.load(preparing.labels_path(run, role))
    source: Any = pipeline.dataset
    options = {
        "on_bad": source.on_bad,
        "max_bad_fraction": source.max_bad_fraction,
        "augmentation": pipeline.augment if role == "train" and pipeline.augment.active else None,
        "seed": pipeline.seed,
    }
    if role == "train" and pipeline.streams:
        return StreamedDataset(
            Shards.load(preparing.units_path(run), FORMATS),
            preparing.stream_rules(pipeline, tokenizer),
            Taste([u.seconds or 0.0 for u in table.utterances], labels),
            StreamPlan.load(preparing.plan_path(run)),
            extractor,
            shuffle_buffer_size=source.shuffle_buffer_size,
            **options,
        )
    return UtteranceDataset(table.utterances, labels, extractor, **options)


def train(speech_trainer: Any, run: Run, rank: Rank) -> dict[str, Any]:
    """Train, save the model where a pipeline can load it, and return what was measured."""
    name = run.record.get("resumed_from")
    with stops.deferred() as asked, failures.explained(speech_trainer):
        _saves_when_preempted(speech_trainer, run, asked)
        done = speech_trainer.train(resume_from_checkpoint=str(run.path / runs.CHECKPOINTS / name) if name else None)
    measured = _of_all_sessions(speech_trainer, dict(done.metrics))
    speech_trainer.gather_forwarded("train")
    if not speech_trainer.forwarded["train"].audio_seconds:
        raise DataError("no utterance of the training split could be decoded; run.log names each with its problem.")
    if speech_trainer.streams:
        measured |= _told_of_stream(speech_trainer, run, rank)
    averaged = speech_trainer.averaging.apply(speech_trainer) if speech_trainer.averaging else []
    if averaged and rank.is_first:
        run.save(averaged_checkpoints=averaged)
    stopped_at = early_stopping.stopped_at(speech_trainer)
    measured |= {} if stopped_at is None else {"stopped_early_at_step": stopped_at}
    _save_model(speech_trainer, run, rank)
    return measured | _forwarded(speech_trainer, "train", measured["train_runtime"] - speech_trainer.evaluation_seconds)


def _told_of_stream(speech_trainer: Any, run: Run, rank: Rank) -> dict[str, Any]:
    """Say, record and return how far the stream was read, and what of it was left out."""
    told = speech_trainer.stream_report()
    if rank.is_first:
        run.save(stream=told)
        for reason, count in told["left_out"].items():
            log.warning("train: %d times left out: %s (the first: %s)", count, reason, told["examples"][reason])
    return {"train_epochs_begun": told["epochs_begun"], "train_times_left_out": sum(told["left_out"].values())}


def _saves_when_preempted(speech_trainer: Any, run: Run, asked: stops.Asked) -> None:
    """Have all ranks save one step and end where any of them was asked to end, or trainer.max_hours are over."""
    preemption = Preemption(
        speech_trainer,
        asked,
        run.path,
        started=run.record["session_started_at"],
        max_hours=run.config["trainer"].get("max_hours"),
    )

    def after_save(problem: str | None) -> None:
        if preemption.wanted:
            step = speech_trainer.state.global_step
            preemption.saved(step) if problem is None else preemption.not_saved(step, problem)

    speech_trainer.agreed.append(preemption)
    speech_trainer.after_save.append(after_save)


def _of_all_sessions(speech_trainer: Any, measured: dict[str, Any]) -> dict[str, Any]:
    """Return the library's training metrics over all sessions of a run: it counts seconds, and 5's losses too, since it resumed."""
    if not speech_trainer.resumed_step:
        return measured
    ours, theirs = speech_trainer.train_seconds, measured["train_runtime"]
    speeds = {key: value * theirs / ours for key, value in measured.items() if key.endswith("_per_second")}
    taken = speech_trainer.state.global_step - speech_trainer.bad_numbers.steps_skipped
    loss = speech_trainer.total_loss / max(taken, 1)
    return measured | speeds | {"train_runtime": round(ours, 4), "train_loss": loss}


def _save_model(speech_trainer: Any, run: Run, rank: Rank) -> None:
    """Write model/, whole or not at all."""
    folder = run.path / runs.MODEL_FOLDER
    aside = folder.with_name(f".{folder.name}")
    try:
        if rank.is_first:
            checkpoints.discard(aside)
        speech_trainer.save_model(str(aside))
        if not rank.is_first:
            return
        (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says the same
        if not (aside / "preprocessor_config.json").exists():  # transformers 5 puts it into processor_config.json, where 4.55 doesn't look
            speech_trainer.processing_class.feature_extractor.save_pretrained(str(aside))
        permissions.follow_umask(aside)
        checkpoints.replace(aside, folder)
    except checkpoints.write_errors() as error:
        checkpoints.discard(aside)
        last = f"; {speech_trainer.last_saved.path} stays" if speech_trainer.last_saved else ""
        why = " ".join(str(error).split())
        raise CheckpointError(f"the trained model can't be written into {folder}: {why}{last}. Make room and resume.") from error


def evaluate(speech_trainer: Any) -> dict[str, Any]:
    """Evaluate once over the whole split and return what was measured."""
    speech_trainer.forwarded["eval"] = trainer.Forwarded()  # evaluations during training had their own
    with failures.explained(speech_trainer):
        measured = {k: v for k, v in speech_trainer.evaluate().items() if not k.endswith(("_end_time", "_preparation_time"))}
    speech_trainer.gather_forwarded("eval")
    return measured | _forwarded(speech_trainer, "eval", measured["eval_runtime"])


def _forwarded(speech_trainer: Any, phase: str, runtime_seconds: float) -> dict[str, Any]:
    seen = speech_trainer.forwarded[phase]
    efficiency = {f"{phase}_padding_efficiency": seen.padding_efficiency}
    if phase == "train" or not speech_trainer.forwarded["train"].shapes:
        efficiency["padding_efficiency"] = seen.padding_efficiency
    return {
        f"num_{phase}_shapes": len(seen.shapes),
        f"num_{phase}_utterances_undecodable": len(seen.bad),
        **efficiency,
        f"{phase}_audio_seconds_per_second": seen.audio_seconds / runtime_seconds,
    }


def _log_forwarded(measured: Mapping[str, Any]) -> None:
    for phase, name in (("train", "training"), ("eval", "evaluation")):
        if f"num_{phase}_shapes" in measured:
            log.info(
                "%s: %d shapes at the model's forward, %.1f %% of its input audio, %.0f s of audio a second",
                name,
                measured[f"num_{phase}_shapes"],
                100 * measured[f"{phase}_padding_efficiency"],
                measured[f"{phase}_audio_seconds_per_second"],
            )
