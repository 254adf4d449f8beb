"""What is made of a record and kept as long as the record may be asked for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from diffusion_edge.view import StageStatus

Made = TypeVar("Made")


class Kept(Generic[Made]):
    """So many of those that were asked for last. A record is known by its identity, which is its
    own as long as it is kept with what was made of it."""

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
        else:
            self._all.move_to_end(key)
        return found[1]

    def of_alike(self, status: StageStatus, asked: Hashable, make: Callable[[], Made]) -> Made:
        """What follows from what work takes on a stage, whatever that holds: made once for all
        records that tell this by the same curves."""
        return self.of(status, asked, lambda: self.of(_alike(status), asked, make))


def _alike(status: StageStatus) -> StageStatus:
    """The first of such records."""
    told = (
        id(status.decode_s),
        id(status.texts_s),
        id(status.pictures_s),
        status.encode_s,
        status.emulated,
        status.guiding,
        status.batches,
        status.most_rows,
        status.pads,
    )
    return _ALIKE.of(status.step_s, told, lambda: status)


_ALIKE: Kept[StageStatus] = Kept(256)
