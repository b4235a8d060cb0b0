"""Error rates of a corpus by jiwer, as a module that evaluate.load takes from disk.

In: hypotheses and references; the configuration name (wer, cer or mer) says which rate. Out: errors over all
utterances divided by what was there to recognise; where that is nothing, jiwer counts the errors themselves.
evaluate copies this file alone, so it imports nothing of ours.
"""

import datasets
import evaluate
import jiwer


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
        rates = {"wer": jiwer.wer, "cer": jiwer.cer, "mer": jiwer.mer}
        return {self.config_name: float(rates[self.config_name](reference=references, hypothesis=predictions))}
