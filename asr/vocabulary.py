"""Characters to tokenizer: a vocabulary built from transcripts, or a tokenizer that is given.

In: normalised transcripts of train and evaluation. Out: a tokenizer for CTC or for a decoder of characters; what a given one lacks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import hub
from asr.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY_FILE = "vocab.json"


@dataclass(kw_only=True)
class Vocabulary:
    """Where the output characters come from. The pad token is CTC's blank, id 0 in a vocabulary built here."""

    tokenizer_name_or_path: str | None = None
    """A tokenizer on disk or on the hub; null builds one, or takes that of a model that has a CTC head."""
    rebuild: bool = False
    """Build a vocabulary although the model has one; its output layer then starts afresh."""
    word_delimiter_token: str = "|"
    unk_token: str = "[UNK]"
    pad_token: str = "[PAD]"
    bos_token: str = "<s>"
    """Starts a sequence, in a vocabulary built for a decoder; CTC has none."""
    eos_token: str = "</s>"
    """Ends a sequence, likewise."""
    phoneme_language: str | None = None
    """Language for tokenizers that turn text into phonemes (Wav2Vec2PhonemeCTCTokenizer); needs phonemizer."""

    def __post_init__(self) -> None:
        specials = (self.pad_token, self.unk_token, self.word_delimiter_token, self.bos_token, self.eos_token)
        if len(set(specials)) < len(specials) or not all(specials):
            listed = ", ".join(map(repr, specials))
            raise ConfigError(f"pad_token, unk_token, word_delimiter_token, bos_token and eos_token must differ, not {listed}.")
        if len(self.word_delimiter_token) != 1:
            raise ConfigError(f"{self.word_delimiter_token!r} is not one character, as it must be.", key="word_delimiter_token")
        if self.rebuild and self.tokenizer_name_or_path:
            raise ConfigError("can't be true while tokenizer_name_or_path is given; drop one.", key="rebuild")

    def check_reachable(self) -> None:
        """Raise ConfigError for a tokenizer folder that isn't there."""
        name = self.tokenizer_name_or_path
        if name and name.startswith(("/", ".", "~")) and not Path(name).expanduser().is_dir():
            raise ConfigError(f"there is no folder {name!r}.", key="tokenizer_name_or_path")

    def build(self, transcripts: Iterable[str], *, sequences: bool = False) -> dict[str, int]:
        """Return token to id: pad, unk, word delimiter, then every character in code point order.

        `sequences` is for a decoder: a beginning and an end, and the space is a character. Raises DataError when a transcript holds one
        of the special tokens: its labels would be wrong.
        """
        transcripts = list(transcripts)
        keys = ["pad_token", "unk_token", *(["bos_token", "eos_token"] if sequences else ["word_delimiter_token"])]
        for key in keys:
            token = getattr(self, key)
            if any(token in transcript for transcript in transcripts):
                raise DataError(
                    f"the transcripts contain {token!r}, which is vocabulary.{key}: add it to text.remove, or choose another token."
                )
        characters = sorted(set().union(*map(set, transcripts)) | {" "} if sequences else set().union(*map(set, transcripts)) - {" "})
        tokens = [*(getattr(self, key) for key in keys), *characters]
        return {token: i for i, token in enumerate(tokens)}

    def labels(self, vocabulary: dict[str, int], transcripts: Iterable[str], *, sequences: bool = False) -> list[list[int]]:
        """Return the label ids of transcripts by a built vocabulary: what its tokenizer gives, without importing one."""
        if sequences:
            return [[*(vocabulary[character] for character in transcript), vocabulary[self.eos_token]] for transcript in transcripts]
        ids = {**vocabulary, " ": vocabulary[self.word_delimiter_token]}
        return [[ids[character] for character in transcript] for transcript in transcripts]

    def tokenizer_from(self, vocabulary: dict[str, int], folder: Path) -> PreTrainedTokenizerBase:
        """Return a character tokenizer over a built vocabulary, which it writes to `folder`/vocab.json."""
        path = folder / VOCABULARY_FILE
        path.write_text(json.dumps(vocabulary, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return self.tokenizer_in(folder)

    def tokenizer_in(self, folder: Path) -> PreTrainedTokenizerBase:
        """Return a character tokenizer over the vocabulary in `folder`/vocab.json; writes nothing, since all ranks read it at once."""
        from transformers import Wav2Vec2CTCTokenizer

        return Wav2Vec2CTCTokenizer(
            str(folder / VOCABULARY_FILE),
            bos_token=None,
            eos_token=None,
            unk_token=self.unk_token,
            pad_token=self.pad_token,
            word_delimiter_token=self.word_delimiter_token,
        )

    def sequence_tokenizer_in(self, folder: Path) -> PreTrainedTokenizerBase:
        """Return the tokenizer of a decoder that writes characters, over the vocabulary in `folder`/vocab.json; writes nothing."""
        from tokenizers import Regex, Tokenizer
        from tokenizers.decoders import Fuse
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import Split
        from tokenizers.processors import TemplateProcessing
        from transformers import PreTrainedTokenizerFast

        vocabulary = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
        backend = Tokenizer(WordLevel(vocabulary, unk_token=self.unk_token))
        backend.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")  # a character each, spaces too
        backend.decoder = Fuse()
        around = [(token, vocabulary[token]) for token in (self.bos_token, self.eos_token)]
        backend.post_processor = TemplateProcessing(single=f"{self.bos_token} $A {self.eos_token}", special_tokens=around)
        special = {f"{name}_token": getattr(self, f"{name}_token") for name in ("bos", "eos", "pad", "unk")}
        return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)

    def tokenizer_of(self, name_or_path: str, *, key: str, **where: Any) -> PreTrainedTokenizerBase:
        """Return the tokenizer saved at `name_or_path`; `where` says with which revision, cache_dir and trust_remote_code."""
        from transformers import AutoTokenizer

        folder = tokenizer_folder(name_or_path, key=key, **where)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=bool(where.get("trust_remote_code")))
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"no tokenizer can be loaded from {name_or_path!r}: {reason}", key=key) from error
        return tokenizer

    def fetch(self, **where: Any) -> None:
        """Have the files of a tokenizer that is given here; raise ConfigError."""
        if self.tokenizer_name_or_path is not None:
            tokenizer_folder(self.tokenizer_name_or_path, key="tokenizer_name_or_path", **where)

    def encode(self, tokenizer: PreTrainedTokenizerBase, transcript: str) -> list[int]:
        """Return the label ids of a normalised transcript."""
        options = {"phonemizer_lang": self.phoneme_language} if self.phoneme_language else {}
        return list(tokenizer(transcript, **options).input_ids)


def tokenizer_folder(
    name_or_path: str, *, key: str, revision: str | None = None, cache_dir: str | None = None, trust_remote_code: bool = False
) -> Path:
    """Return the folder of a tokenizer: the given one, or the hub's in the cache; raise ConfigError."""
    if hub.is_name(name_or_path):
        return hub.tokenizer_folder(name_or_path, key=key, revision=revision, cache_dir=cache_dir)
    return Path(name_or_path).expanduser()


def unknown_characters(tokenizer: PreTrainedTokenizerBase, transcripts: Iterable[str]) -> dict[str, int]:
    """Return the characters that a tokenizer lacks with how often they occur, most frequent first."""
    counts = Counter(character for transcript in transcripts for character in transcript if character != " ")
    unknown = {c: n for c, n in counts.items() if tokenizer.unk_token_id in tokenizer(c).input_ids}
    return dict(sorted(unknown.items(), key=lambda item: (-item[1], item[0])))
