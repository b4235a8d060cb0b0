"""The character error rate of a corpus, by jiwer, as a module that evaluate.load takes from disk.

In: hypotheses and references. Out: errors over all utterances divided by what was there to recognise;
where that is nothing, jiwer counts the errors themselves.
"""

import datasets
import evaluate
import jiwer


class Cer(evaluate.Metric):
    """`compute(predictions=[...], references=[...])` returns a float."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(
            description="character error rate by jiwer",
            citation="",
            inputs_description="predictions and references: lists of strings",
            features=features,
        )

    def _compute(self, predictions, references):
        return float(jiwer.cer(reference=references, hypothesis=predictions))
