"""What must not be written or shown anywhere: values of the environment whose names say that they are secret, what looks like a token,
and codes that a terminal would obey.

In: text on its way to a log, a terminal or a record. Out: the same with *** or an escape in their place.
"""

from __future__ import annotations

import logging
import os
import re

SECRET_NAME = re.compile(r"(?i)((token|key|secret|credential)s?|pass(word|wd|phrase)?s?|_pat)$")
"""Names of environment variables whose values must not be written anywhere."""
LEAST_LENGTH = 8
"""A shorter value is no secret worth the name, and hiding it would blot out words."""
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
"""The hub's tokens, which may come from a file instead."""
_PASSWORD = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
"""Name and password in an address; the name may be empty."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def here() -> dict[str, str]:
    """Return the secrets of this process' environment, by name."""
    return {name: value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= LEAST_LENGTH}


def redacted(text: str) -> str:
    """Return a text without the secrets of the environment, tokens of the hub and passwords in addresses.

    >>> redacted("GET https://me:sesame@host/x with hf_0123456789abcdefghij")
    'GET https://***@host/x with ***'
    """
    for value in sorted(here().values(), key=len, reverse=True):  # one may begin with another
        text = text.replace(value, "***")
    return _PASSWORD.sub("***", _TOKEN.sub("***", text))


def printable(text: str) -> str:
    r"""Return a text whose control characters are written out, but for the ends of lines and tabs.

    >>> printable("\x1b[31mred")
    '\\x1b[31mred'
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class RedactingFormatter(logging.Formatter):
    """Formats log lines, tracebacks included: a library's message may hold an address with a token, and a file's name anything."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().format(record)))
