"""Log-mel features: ours against transformers' SeamlessM4TFeatureExtractor, same waveforms, same process.

    python benchmarks/features.py [--utterances 100] [--seconds 1.3 12.7]

Prints a row a length and, as the last line, a JSON object. `ratio` is their time over ours; `difference` the
largest absolute difference between the two results (both are normalised to unit variance).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from transformers import SeamlessM4TFeatureExtractor

from asr.features import extract


def best_seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Return the fastest of several rounds: the machine's noise only ever adds."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=50)
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[1.3, 12.7], help="lengths: spoken digits', LibriSpeech clean-100's mean"
    )
    options = parser.parse_args()
    extractor = SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, stride=3, padding_value=0.0)
    dice = np.random.default_rng(0)
    rows = []
    for seconds in options.seconds:
        waves = [dice.standard_normal(round(seconds * 16000)).astype(np.float32) * 0.1 for _ in range(options.utterances)]
        theirs = best_seconds(lambda waves=waves: [extractor(w, sampling_rate=16000) for w in waves])
        ours = best_seconds(lambda waves=waves: [extract(extractor, w) for w in waves])
        result = extractor(waves[0], sampling_rate=16000, return_tensors="np")
        expected = result.input_features[0][result.attention_mask[0].astype(bool)]
        difference = float(np.abs(extract(extractor, waves[0]) - expected).max())
        rows.append({"seconds": seconds, "ratio": theirs / ours, "ours_ms": 1e3 * ours / len(waves), "difference": difference})
    print("seconds of audio   theirs/ours   ours, ms an utterance   largest difference")
    for row in rows:
        print(f"{row['seconds']:16.1f}   {row['ratio']:11.2f}   {row['ours_ms']:21.2f}   {row['difference']:18.1e}")
    print(json.dumps({"features": rows}))


if __name__ == "__main__":
    main()
