"""The story of a run: prepare, train, evaluate, report.

In: a checked configuration. Out: a run directory. The parent prepares the manifest and the vocabulary and
writes them down; the worker, this process or a child of it, reads them and never preprocesses.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import (
    checkpoints,
    circumstances,
    ctc_outputs,
    early_stopping,
    engines,
    failures,
    freezing,
    history,
    leases,
    lora,
    manifest,
    metrics,
    model_card,
    nodes,
    permissions,
    preparing,
    publishing,
    run_report,
    runs,
    seq2seq_outputs,
    sessions,
    stops,
    submission,
    supervision,
    topology,
    trackers,
    trainer,
    whisper_tokenizer,
)
from asr.collate import Collator, DecoderStart, UtteranceDataset
from asr.errors import AsrError, CheckpointError, ConfigError, DataError, PublishError, said_by
from asr.labels import Labels
from asr.pipeline import Pipeline
from asr.preemption import Preemption
from asr.ranks import Rank
from asr.runs import Run
from asr.spec_augment import takes_masks
from asr.stops import End, Terminated, ended_by
from asr.streaming.dataset import FORMATS, StreamedDataset, Taste
from asr.streaming.plans import StreamPlan
from asr.streaming.shards import Shards

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


NODE_S_OWN = ("topology.node_rank", "topology.join_seconds", "topology.shown_ranks", "topology.threads_per_rank")
"""Keys that differ between the servers of a run."""


MODEL_FOLDER = "model"
NO_LEASE = leases.Lease()

Judge = Callable[[Run, End], End]
"""What looks at how the workers of a run ended, before that is recorded, and says how it ends."""


def start(
    composed: Mapping[str, Any],
    run_dir: Path,
    *,
    overrides: Sequence[str],
    in_child: bool,
    before: Callable[[], object] | None = None,
    judge: Judge | None = None,
    named: bool = True,
    shared: Path | None = None,
    replay_of: Mapping[str, Any] | None = None,
) -> tuple[int, Run | None]:
    """Run an experiment in `run_dir`, or go on with one, and return its exit code and, on the first server, the run.

    Several processes, and a sweep's job, are children of this one. On a server that isn't the first, the run is
    the first one's: it prepares, and records the end. `before` is done before anything is prepared. `named`: a user
    chose `run_dir`; otherwise resume=auto looks for a run of this configuration beside it. `shared`: where a sweep's jobs find
    what one of them has prepared. `replay_of`: what is known of the run that this one replays; run.json keeps it, so that a
    resumed replay is held to it too.
    """
    try:
        pipeline = Pipeline.of(composed)
    except ConfigError:
        with contextlib.suppress(OSError):
            run_dir.rmdir()  # Hydra has made it
        raise
    if pipeline.node:
        return _take_part(pipeline, composed, run_dir)
    command = [sys.executable, *sys.argv]
    run, unfinished = sessions.open_run(composed, run_dir, named=named, command=command, overrides=overrides)
    if not unfinished:
        return 0, run
    if replay_of is not None:
        run.save(replay_of=dict(replay_of))
    try:
        return _session(pipeline, run, in_child=in_child, before=before, judge=judge, shared=shared), run
    finally:
        sessions.let_go(run.path)


def _session(
    pipeline: Pipeline, run: Run, *, in_child: bool, before: Callable[[], object] | None, judge: Judge | None, shared: Path | None
) -> int:
    """Work on a run that this process holds, and return the exit code."""
    runs.configure_logging(run.path)
    if "replay_of" in run.record:
        circumstances.say(run)
    if pipeline.dry_run:
        run.end_dry([launch.describe() for launch in pipeline.launches(run.path)])
        return 0

    def story() -> End:
        pipeline.check_host()  # a submitted job meets its machine here
        if before:
            before()
        if "dataset" in run.record:
            log.info("data: as the run's first session prepared it")
        else:
            preparing.prepare(pipeline, run, shared)
        if "replay_of" in run.record:
            circumstances.check_data(run)
        if not pipeline.works:
            return End()
        _find_checkpoint(run)
        with _devices(pipeline, run) as lease:
            if in_child or pipeline.topology.has_launcher:
                end = _supervised(pipeline, run, lease)
                return judge(run, end) if judge else end
            with leases.applied(lease):
                pipeline.topology.apply_environment()
                work(run)
        return End()

    code = guarded(run, story)
    if code or not (run.path / MODEL_FOLDER).is_dir() or pipeline.rehearse:
        return code
    _write_card(run)
    return _publish(pipeline, run) if pipeline.publish else code


def _write_card(run: Run) -> None:
    """Describe the model beside it; a card that can't be written spoils no run."""
    try:
        model_card.write(run, run.path / MODEL_FOLDER)
    except Exception as error:
        log.warning("the model's card can't be written: %s: %s", type(error).__name__, " ".join(str(error).split()))


def _publish(pipeline: Pipeline, run: Run) -> int:
    """Push the model of a run that has finished; where that fails, the run stays finished and the launch says it."""
    args = pipeline.trainer.args
    try:
        publishing.publish(run, args["hub_model_id"], private=args.get("hub_private_repo"))
    except PublishError as error:
        log.error("error: %s", error)
        return error.exit_code
    return 0


@contextlib.contextmanager
def _devices(pipeline: Pipeline, run: Run) -> Iterator[leases.Lease]:
    """Hold the devices that a run computes on, recorded; a rehearsal's is a stand-in."""
    if pipeline.rehearse:
        yield leases.Lease()
        return
    with leases.leased(pipeline.topology, run.path) as lease:
        if lease.ids:
            waited = (
                {} if lease.waited_seconds < 1 else {"session_started_at": time.time()}
            )  # trainer.max_hours is for work, not for waiting
            run.save(devices=lease.describe(), **waited)
        yield lease


def _find_checkpoint(run: Run) -> None:
    """Record which checkpoint the workers go on from; every file of it is read and compared with what was written."""
    found = checkpoints.newest_good(run.path / runs.CHECKPOINTS)
    if found:
        log.info("training goes on after step %d (%s)", found.step, found.path.name)
        run.save(resumed_from=found.path.name)
    elif run.record["sessions"]:
        log.warning("%s holds no checkpoint to go on from: training begins anew", run.path)


def _supervised(pipeline: Pipeline, run: Run, lease: leases.Lease = NO_LEASE) -> End:
    """Work in processes of their own, on this server."""
    where, node = pipeline.topology, pipeline.node
    launch = pipeline.launch(run.path, node)
    for replaced in topology.set_over_shell(launch.environment):
        log.warning("%s", replaced)
    launch = replace(launch, environment={**launch.environment, **(lease.environment or {})})
    log.info("starting %d processes: %s", where.processes_here, launch)
    if node == 0:
        run.save(launch=launch.describe())
    return supervision.supervise(launch, run.path, where, node=node)


def _take_part(pipeline: Pipeline, composed: Mapping[str, Any], run_dir: Path) -> tuple[int, None]:
    """Join a run that server 0 prepares."""
    stops.listen()
    runs.configure_logging(None)
    try:
        nodes.wait_for_run(run_dir, pipeline.topology, resumes=pipeline.resume == "auto")
        run = Run.load(run_dir)
        if run.record["status"] == "finished":
            log.warning("%s has finished: there is nothing to resume", run_dir)
            return 0, None

        def story() -> End:
            runs.check_same_config(run, composed, except_for=NODE_S_OWN)
            pipeline.check_host()
            return _supervised(pipeline, run)

        end = explained(story, run_dir)
    except (KeyboardInterrupt, Terminated) as stop:
        log.error("%s", ended_by(stop).error)
        raise
    if end.exit_code == stops.PREEMPTED:
        log.error("%s", end.error)
    elif end.exit_code:
        log.error("error: %s", end.error)
        nodes.say_failed(run_dir, pipeline.topology, pipeline.node, end.exit_code)
    return end.exit_code, None


def guarded(run: Run, story: Callable[[], End]) -> int:
    """Tell the story, record its end in run.json whatever it is, and return the exit code of the contract.

    Ctrl-C and a signal that ends the process are recorded and raised again, as is a training's end as preempted; `stops.ended_by`
    has their exit codes.
    """
    stops.listen()
    try:
        end = explained(story, run.path)
    except (KeyboardInterrupt, Terminated) as stop:
        end = ended_by(stop)
        log.error(*([end.error] if isinstance(stop, stops.Preempted) else ["%s; what is in %s stays", end.error, run.path]))
        _record(run, end)
        _report(run)
        raise  # past Hydra, so that a sweep stops too
    if end.exit_code == stops.PREEMPTED:
        log.error("%s", end.error)
    elif end.exit_code:
        log.error("error: %s", end.error)
    others_read_it = run.record["topology"]["num_nodes"] > 1 or submission.in_job()
    is_new = not run.has_weights and not run.record["sessions"]
    if end.exit_code == ConfigError.exit_code and is_new and not others_read_it:
        run.discard()  # what a configuration names is loaded before training: exit code 2 leaves nothing behind
    elif not _record(run, end):
        return end.exit_code or 1
    else:
        _report(run)
    return end.exit_code


def _record(run: Run, end: End) -> bool:
    """Write into run.json how it ended; False, with the reason logged, where the folder has gone or can't be written."""
    try:
        run.reload()  # the workers have written what they found out
        run.finish(end.exit_code, end.error)
    except (OSError, ConfigError) as error:
        log.error("how the run ended can't be recorded in %s: %s", run.path, error)
        return False
    return True


def _report(run: Run) -> None:
    """Write the page of a run that has ended; a failure of that is no failure of the run."""
    if run.record.get("rehearsal"):
        return
    try:
        run_report.write(run)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("%s can't be written (%s); the run is as it is, and `asr report` tries again", run.path / runs.PAGE_FILE, why)


def explained(story: Callable[[], End], run_dir: Path) -> End:
    """Tell a story, and return its end whatever it is: a user's mistake with its message, anything else with its traceback logged."""
    try:
        return story()
    except AsrError as mistake:
        return End(mistake.exit_code, said_by(mistake))
    except (Exception, SystemExit) as unexpected:  # a library that gives up
        log.error("unexpected failure; please report it with %s\n%s", run_dir / runs.LOG_FILE, traceback.format_exc())
        return End(1, f"{type(unexpected).__name__}: {unexpected}")


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
    scorer = metrics.Scorer(
        tables["eval"].utterances,
        references["eval"],
        seq2seq_outputs.decoder(tokenizer, model.config.decoder_start_token_id) if generates else ctc_outputs.decoder(tokenizer),
        pipeline.text,
        pipeline.trainer.eval_metrics,
        datasets["eval"].labels.lengths.tolist() if generates else None,
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
    return speech_trainer, scorer


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
    folder = run.path / MODEL_FOLDER
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
