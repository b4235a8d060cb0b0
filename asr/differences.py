"""What differs between two configurations, key by key.

In: configurations as plain containers. Out: dotted keys with both values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


class Absent:
    """Stands for the value of a key that isn't there."""

    def __repr__(self) -> str:
        return "-"


ABSENT = Absent()
Difference = tuple[str, Any, Any]


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """Return each dotted key at which two configurations differ, with both values; ABSENT where one hasn't got it.

    Numbers are compared as numbers (3 is 3.0), true is not 1, lists as wholes.

    >>> differences({"a": {"b": 1, "c": 3}}, {"a": {"b": 1.0, "c": 4, "d": None}})
    [('a.c', 3, 4), ('a.d', -, None)]
    """
    return list(_differences(left, right))


def _differences(left: Any, right: Any, key: str = "") -> Iterator[Difference]:
    there = [side for side in (left, right) if side is not ABSENT]
    if all(isinstance(side, Mapping) for side in there) and (any(there) or len(there) == 2):
        for name in dict.fromkeys(name for side in there for name in side):
            below = [side.get(name, ABSENT) if isinstance(side, Mapping) else ABSENT for side in (left, right)]
            yield from _differences(below[0], below[1], f"{key}.{name}" if key else str(name))
    elif not equal(left, right):
        yield key, left, right


def equal(left: Any, right: Any) -> bool:
    """Whether two values are the same: 3 is 3.0, true is not 1, and .nan is .nan."""
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return not any(_differences(left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right) or (left != left and right != right)  # the last is .nan


def as_json(value: Any) -> str:
    """Return a value as it is shown: as JSON, or - where there is none.

    >>> as_json(None), as_json(ABSENT)
    ('null', '-')
    """
    return "-" if value is ABSENT else json.dumps(value, ensure_ascii=False)
