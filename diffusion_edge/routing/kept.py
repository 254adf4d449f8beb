"""What is made of a record and kept as long as the record may be asked for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Kept(Generic[Made]):
    """The latest so many. A record is known by its identity, which is its own as long as it is kept
    with what was made of it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: OrderedDict[tuple[int, Hashable], tuple[object, Made]] = OrderedDict()

    def of(self, record: object, asked: Hashable, make: Callable[[], Made]) -> Made:
        key = id(record), asked
        found = self._all.get(key)
        if found is None:
            found = self._all[key] = record, make()
            if len(self._all) > self._most:
                self._all.popitem(last=False)
        return found[1]
