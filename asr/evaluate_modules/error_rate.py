"""Error rates of a corpus by jiwer, as a module that evaluate.load takes from disk.

In: hypotheses and references; the configuration name (wer, cer or mer) says which rate. Out: errors over all
utterances divided by what was there to recognise; where that is nothing, jiwer counts the errors themselves.
evaluate copies this file alone, so it imports nothing of ours.
"""

import datasets
import evaluate
import jiwer

TOGETHER = 256
"""Utterances that jiwer gets at once: it keeps an object for every edit and a number for every character until it returns."""


class ErrorRate(evaluate.Metric):
    """`evaluate.load(path, "wer").compute(predictions=[...], references=[...])` returns {"wer": ...}."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(
            description="word (wer), character (cer) or match (mer) error rate by jiwer",
            citation="",
            inputs_description="predictions and references: lists of strings",
            features=features,
        )

    def _compute(self, predictions, references):
        process = jiwer.process_characters if self.config_name == "cer" else jiwer.process_words
        errors = there = inserted = 0
        for i in range(0, len(references), TOGETHER):
            found = process(references[i : i + TOGETHER], predictions[i : i + TOGETHER])
            errors += found.substitutions + found.deletions + found.insertions
            there += found.hits + found.substitutions + found.deletions
            inserted += found.insertions
        out_of = there + inserted if self.config_name == "mer" else there
        return {self.config_name: errors / out_of if out_of else float(errors)}
