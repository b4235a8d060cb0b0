"""What a user did or has that stops a run, each with the exit code it ends in.

In: what was wrong and where. Out: one message that names the key, file or utterance, and the mend.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from asr.secrets import redacted

LONGEST_LINE = 800
"""Characters of a message's line; what is quoted in it may be a file's worth."""


def shortened(text: str, longest: int = LONGEST_LINE) -> str:
    """Return a text with the middle of its overlong lines left out.

    >>> shortened("a" * 50 + "z" * 50, 20)
    'aaaaaaaaaa [80 characters] zzzzzzzzzz'
    """
    half = longest // 2
    lines = text.split("\n")
    return "\n".join(x if len(x) <= longest else f"{x[:half]} [{len(x) - 2 * half} characters] {x[-half:]}" for x in lines)


class AsrError(Exception):
    """A user's mistake: shown as its message alone, without a traceback and without secrets that a library put into it."""

    exit_code = 1

    def __str__(self) -> str:
        return shortened(redacted(super().__str__()))


class ConfigError(AsrError):
    """The configuration is wrong. `key` is the dotted key; nothing is left on disk."""

    exit_code = 2

    def __init__(self, problem: str, *, key: str = "") -> None:
        self.key = key
        self.problem = problem
        super().__init__(f"{key}: {problem}" if key else problem)

    def under(self, parent: str) -> ConfigError:
        """Return the same error with `parent` put before its key."""
        return ConfigError(self.problem, key=f"{parent}.{self.key}" if self.key else parent)


class DataError(AsrError):
    """The data is wrong or missing: names the file, split or utterance."""

    exit_code = 3


class PublishError(AsrError):
    """A trained model can't be pushed to the hub: says why, and how to try again."""


class CheckpointError(AsrError):
    """A checkpoint can't be written or read: names the file."""


class TrainingError(AsrError):
    """Training can't go on: numbers gone bad, memory that doesn't suffice, a process that was killed. Names the step and the mend."""


class LaunchError(AsrError):
    """The processes of a run can't be started or don't find each other."""


def said_by(error: AsrError) -> str:
    """Return the message of an error, also where a torch loader worker has wrapped it in its traceback."""
    message = str(error)
    if not message.startswith("Caught ") or "DataLoader worker" not in message:
        return message
    return message.strip().splitlines()[-1].partition(f"{type(error).__name__}: ")[2]


class JobError(AsrError):
    """A sweep's job ended badly; it has said why itself, a submitted one in its `log`."""

    def __init__(self, run_dir: object, exit_code: int, log: str | None = None) -> None:
        self.run_dir, self.exit_code, self.log = run_dir, exit_code, log
        super().__init__(f"the job in {run_dir} ended with exit code {exit_code}{f'; its log is {log}' if log else ''}")

    def __reduce__(self) -> tuple[type[JobError], tuple[object, int, str | None]]:
        return JobError, (self.run_dir, self.exit_code, self.log)  # a submitted job's error comes back as a pickle


MOST_NAMED = 8


def listed(names: Sequence[str], most: int = MOST_NAMED, *, by: str = ", ") -> str:
    """Return the first of some names in one line, and how many more there are."""
    return by.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return " Did you mean ...?" with the nearest of `candidates`, or an empty string.

    A key is also found by its last part alone, so that `learning_rate` leads to
    `trainer.args.learning_rate`.
    """
    names = [name for name in candidates if name != word]
    leaf = word.rpartition(".")[2]
    near = [name for name in names if name.rpartition(".")[2] == leaf]
    near = near or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    near = near or [
        name
        for close in difflib.get_close_matches(leaf, [n.rpartition(".")[2] for n in names], n=1, cutoff=0.75)
        for name in names
        if name.rpartition(".")[2] == close
    ]
    return f" Did you mean {' or '.join(near[:3])}?" if near else ""
