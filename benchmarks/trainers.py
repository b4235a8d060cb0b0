"""The trainer that a configuration describes, put together in this process as a run does it.

In: a folder, a corpus of benchmarks/corpus.py, and overrides. Out: the real trainer over that corpus, ready to train.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from asr import composition, preparing, stages
from asr.pipeline import Pipeline
from asr.runs import Run

QUIET = ("trainer.args.report_to=none", "trainer.args.save_strategy=no", "trainer.args.disable_tqdm=true")


def built(folder: Path, corpus: Path, *overrides: str) -> Any:
    """Return the trainer; its run directory and header cache lie in `folder`, which must not exist. Overrides may name another source.

    Call it before torch is imported, so that the threads that the configuration asks for are those that torch takes.
    """
    source = [] if any(override.startswith("dataset=") for override in overrides) else ["dataset=jsonl", "dataset.eval_split=dev.jsonl"]
    asked = [*source, f"dataset.root='{corpus}'", *QUIET, *overrides]
    container = composition.to_container(composition.compose(asked))
    pipeline = Pipeline.of(container)
    os.environ["ASR_CACHE"] = str(folder.parent / "cache")
    run = Run.create(folder, container, command=[], overrides=asked)
    preparing.prepare(pipeline, run)
    pipeline.topology.apply_environment()
    trainer, _ = stages.build(pipeline, run)

    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # the table is what is printed
    return trainer
