"""Up to the first optimizer step as the published script goes: decode everything, write it as float32, then train.

    python benchmarks/materialise.py <corpus> <vocab.json> [--workers 2]

Run by first_step.py, as a whole process. Follows optimum-habana's examples/speech-recognition/run_speech_recognition_ctc.py:
transcripts and vocabulary by one worker, `Dataset.map` with soundfile and Wav2Vec2FeatureExtractor by several, `filter`
on the length, then a batch of one utterance padded to 20 s and 500 labels, and a step of torch's AdamW, on the model
of conf/model/wav2vec2_tiny.yaml. Caches go where HF_HOME says. As the last line, a JSON object with the clock's time
when the step was done.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import soundfile
import yaml

MAX_SECONDS, MAX_LABELS, RATE_HZ = 20, 500, 16000
MODEL = Path(__file__).resolve().parent.parent / "conf" / "model" / "wav2vec2_tiny.yaml"


def prepared(manifest: Path, vocabulary: Path, workers: int) -> tuple[Any, Any]:
    """Return the materialised dataset, and its processor."""
    from datasets import load_dataset
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    rows = load_dataset("json", data_files=str(manifest), split="train")
    rows = rows.map(lambda row: {"target_text": row["text"].lower() + " "}, remove_columns=["text"])
    joined = rows.map(
        lambda batch: {"text": [" ".join(batch["target_text"])]}, batched=True, batch_size=-1, remove_columns=rows.column_names
    )
    characters = sorted(set(joined[0]["text"]) - {" "})
    vocabulary.write_text(json.dumps({c: i for i, c in enumerate(["[PAD]", "[UNK]", "|", *characters])}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary), unk_token="[UNK]", pad_token="[PAD]", word_delimiter_token="|")
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        samples, rate_hz = soundfile.read(manifest.parent / row["audio_filepath"], dtype="float32")
        row["input_values"] = extractor(samples, sampling_rate=rate_hz).input_values[0]
        row["input_length"] = len(samples)
        row["labels"] = tokenizer(row["target_text"]).input_ids
        return row

    rows = rows.map(prepare, remove_columns=rows.column_names, num_proc=workers)
    rows = rows.filter(lambda length: 0 < length < MAX_SECONDS * RATE_HZ, num_proc=workers, input_columns=["input_length"])
    return rows, Wav2Vec2Processor(extractor, tokenizer)


def step(rows: Any, processor: Any) -> None:
    """Take one optimizer step on the first utterance of a shuffled epoch."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    values = {name: value for name, value in yaml.safe_load(MODEL.read_text()).items() if name.startswith(("ctc_", "mask_", "layerdrop"))}
    architecture = yaml.safe_load(MODEL.read_text())["architecture"]
    tokens = {"vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id}
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**{**architecture, **values, **tokens})).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    row = rows[int(torch.randperm(len(rows))[0])]
    inputs = processor.feature_extractor.pad(
        {"input_values": [row["input_values"]]}, padding="max_length", max_length=MAX_SECONDS * RATE_HZ, return_tensors="pt"
    )
    labels = torch.full((1, MAX_LABELS), -100)
    labels[0, : len(row["labels"])] = torch.tensor(row["labels"])
    model(**inputs, labels=labels).loss.backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="made by benchmarks/corpus.py")
    parser.add_argument("vocabulary", type=Path, help="where the vocabulary is written")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    for split in ("dev", "train"):
        rows, processor = prepared(asked.corpus / f"{split}.jsonl", asked.vocabulary, asked.workers if split == "train" else 1)
    step(rows, processor)
    print(json.dumps({"first_step_at": time.time(), "utterances": len(rows)}))


if __name__ == "__main__":
    main()
