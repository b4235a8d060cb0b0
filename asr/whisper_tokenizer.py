"""A tokenizer for Whisper from scratch: bytes, and Whisper's own special tokens in their order.

In: a folder. Out: transformers' Whisper tokenizer, which needs no download and can spell any text. Its language, task and
timestamp tokens stand where the class and a pipeline look for them (transformers 4.55, models/whisper/tokenization_whisper.py:407).
"""

from __future__ import annotations

import inspect
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from asr.signatures import string_dict

FOLDER = "tokenizer"
END, START = "<|endoftext|>", "<|startoftranscript|>"
LAST_TIMESTAMP_SECONDS = 30.0
TIMESTAMP_STEP_SECONDS = 0.02


@lru_cache
def languages() -> dict[str, str]:
    """Return the languages that Whisper knows, code to name, read from transformers' source."""
    return string_dict("transformers.models.whisper.tokenization_whisper", "LANGUAGES")


def special_tokens() -> list[str]:
    """Return the special tokens after the end of text, in Whisper's order (openai/whisper-tiny's tokenizer has the same)."""
    after = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    return [START, *(f"<|{code}|>" for code in languages()), *after]


def without_timestamps(text: str) -> str:
    """Return text without its timestamps.

    >>> without_timestamps("<|0.00|>one two<|1.20|>")
    'one two'
    """
    return re.sub(r"<\|\d+\.\d\d\|>", "", text)


def make(folder: Path) -> Any:
    """Write a byte-level Whisper tokenizer to a folder, and return it."""
    import transformers
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {symbol: number for number, symbol in enumerate([*sorted(ByteLevel.alphabet()), END])}
    folder.mkdir(parents=True, exist_ok=True)
    cls = getattr(transformers, "WhisperTokenizerFast", transformers.WhisperTokenizer)
    if "vocab_file" in inspect.signature(cls.__init__).parameters:
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        tokenizer = cls(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=END)
    else:  # transformers 5
        tokenizer = cls(vocab=vocabulary, merges=[], pad_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": special_tokens()})
    steps = round(LAST_TIMESTAMP_SECONDS / TIMESTAMP_STEP_SECONDS) + 1
    tokenizer.add_tokens([AddedToken(f"<|{i * TIMESTAMP_STEP_SECONDS:.2f}|>", special=False, normalized=False) for i in range(steps)])
    tokenizer.save_pretrained(str(folder))
    return tokenizer
