"""One rank's part of a rehearsal: train, evaluate, save and resume on the stand-in device, and write down what happened.

In: a run whose configuration was shrunk. Out: the first rank's facts, complete as far as it came.
"""

from __future__ import annotations

import hashlib
import logging
import traceback
from collections import Counter
from dataclasses import replace
from typing import Any

from asr import stages
from asr.errors import AsrError
from asr.pipeline import Pipeline
from asr.ranks import Rank
from asr.rehearsal.sampling import FewBatches
from asr.rehearsal.verdict import Facts
from asr.runs import Run

log = logging.getLogger(__name__)


class RehearsalError(AsrError):
    """Something on the HPU's path failed; its message is the library's."""

    exit_code = 1


def work(run: Run, rank: Rank) -> None:
    """Rehearse a prepared run; what went wrong without an exception is among the facts."""
    pipeline = Pipeline.of(run.config)
    pipeline.topology.apply_environment()
    facts = Facts()
    try:
        _rehearse(replace(pipeline, batching=FewBatches(whole=pipeline.batching)), run, rank, facts)
    except AsrError:
        raise
    except Exception as error:  # what a rehearsal is for: any failure of a library on this path is a finding
        log.error("%s failed\n%s", facts.doing, traceback.format_exc())
        raise RehearsalError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        if rank.is_first:
            facts.save(run.path)


def _rehearse(pipeline: Pipeline, run: Run, rank: Rank, facts: Facts) -> None:
    log.info("importing torch, transformers and optimum-habana: about ten seconds")
    facts.doing = "setting up"
    from asr.rehearsal import device

    device.load()  # before anyone asks torch for an accelerator, which it finds out once; Intel's plugin comes with `import torch` itself
    from asr.rehearsal import findings
    from asr.rehearsal.recorder import Recorder

    first = _built(pipeline, run)
    facts |= findings.described(first)
    log.info("trainer: %s on %s, the stand-in", facts["trainer_class"], first.args.device)

    trains = "train" in pipeline.stages
    on_the_way = first.args.eval_strategy != "no"
    recorder = Recorder(first, evaluates=on_the_way, in_the_middle=trains)
    if trains:
        facts.doing = "training"
        measured = stages.train(first, run, rank)
        facts |= {"optimizer": findings.class_name(first.optimizer), **findings.of_training(first, recorder, measured)}
        facts.ran(
            training=f"{recorder.steps} steps of {len(recorder.losses)} batches", saving=f"at step {recorder.saved_at}, and the model"
        )
        facts.failures += findings.what_graphs_do_wrong("training")
        facts.warnings += [*findings.what_splits_graphs("training", recorder.captured_syncs), *findings.what_shares_a_graph(facts, "train")]
    if "evaluate" in pipeline.stages:
        facts.doing = "evaluating"
        measured = stages.evaluate(first)
        facts |= findings.of_evaluation(first, measured)
        facts.ran(evaluation=f"{len(first.eval_dataset)} utterances at hand, {measured['num_eval_shapes']} shapes")
        facts.failures += findings.what_graphs_do_wrong("inference")
        facts.warnings += [*findings.what_splits_graphs("inference", Counter()), *findings.what_shares_a_graph(facts, "eval")]
    facts.failures += findings.what_attention_is_not_called(first, facts)
    if first.args.world_size > 1:
        facts.doing = "comparing ranks"
        facts.failures += _of_ranks(first, facts)
    if trains:
        facts.doing = "resuming"
        facts.failures += _resumed(pipeline, run, first, recorder, facts)
    facts.doing = None
    first.end()


def _built(pipeline: Pipeline, run: Run) -> Any:
    """Return the experiment's trainer, without the progress bars and lines that tell its speed: the stand-in's says nothing."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    speech_trainer, _ = stages.build(pipeline, run)
    for callback in (PrinterCallback, ProgressCallback):
        speech_trainer.remove_callback(callback)
    return speech_trainer


def _of_ranks(speech_trainer: Any, facts: Facts) -> list[str]:
    """Compare the weights of all ranks; every rank has to call it."""
    import torch
    from accelerate.utils import gather_object

    from asr.rehearsal.recorder import weights

    sums = hashlib.sha256()
    for name, tensor in sorted(weights(speech_trainer).items()):
        sums.update(name.encode() + tensor.contiguous().view(-1).view(dtype=torch.uint8).numpy().tobytes())
    each = gather_object([sums.hexdigest()])
    facts |= {"ranks_equal": len(set(each)) == 1}
    found = [] if facts["ranks_equal"] else [f"the {len(each)} ranks ended with different weights: their gradients weren't averaged."]
    if facts["process_group"] != "hccl":
        found.append(f"the ranks meet over {facts['process_group']}, not hccl.")
    return found


def _resumed(pipeline: Pipeline, run: Run, first: Any, recorder: Any, facts: Facts) -> list[str]:
    """Train the second half again from the checkpoint in the middle, and compare weights with those that never stopped."""
    from asr.rehearsal.recorder import Recorder, largest_difference

    checkpoint = run.path / "checkpoints" / f"checkpoint-{recorder.saved_at}"
    second = _built(pipeline, run)
    again = Recorder(second, evaluates=False, in_the_middle=False)
    second.train(resume_from_checkpoint=str(checkpoint))
    difference = largest_difference(recorder.weights, again.weights)
    facts |= {"resumed": {"from_step": recorder.saved_at, "steps": again.steps, "largest_weight_difference": difference}}
    facts.ran(resuming=f"{again.steps} steps from checkpoint-{recorder.saved_at}")
    if first.args.world_size > 1:
        second.end()
    if again.steps != recorder.steps - recorder.saved_at:
        return [f"resuming from step {recorder.saved_at} of {recorder.steps} took {again.steps} steps."]
    if difference != 0:
        return [f"a run resumed at step {recorder.saved_at} ends with other weights: they differ by up to {difference:g}."]
    return []
