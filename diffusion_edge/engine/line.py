"""Who waits for an answer, and the task that works for them, a round at a time.

Made once for steps and for calls, so that nobody is left waiting, however the work ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from diffusion_edge.engine.turn import Seat
from diffusion_edge.errors import StageLost


class Waiter(Protocol):
    """`answer` is set by the work; who waits awaits it."""

    @property
    def answer(self) -> asyncio.Future[Any]: ...


Who = TypeVar("Who", bound=Waiter)


class Line(Generic[Who]):
    """Those who wait, in order of arrival.

    work: one round for those without an answer, until all have one. What it raises is the answer of
    all who wait. turn: held during a round; what shares it takes turns.
    """

    def __init__(self, work: Callable[[list[Who]], Awaitable[None]], turn: Seat) -> None:
        self._work = work
        self._turn = turn
        self._waiters: list[Who] = []
        self._task: asyncio.Task[None] | None = None
        self._closed: Callable[[], StageLost] | None = None

    @property
    def idle(self) -> bool:
        """Whether nobody is worked for."""
        return self._task is None or self._task.done()

    def waiting(self) -> list[Who]:
        """Those without an answer."""
        return [waiter for waiter in self._waiters if not waiter.answer.done()]

    async def join(self, waiter: Who) -> None:
        """Returns when the waiter has its answer, and raises it if it is an error; cancelling this
        takes it out. Raises StageLost after `close`."""
        self.enter(waiter)
        await waiter.answer

    def enter(self, waiter: Who) -> None:
        """Until it has its answer, or that is cancelled. Raises StageLost after `close`."""
        if self._closed is not None:
            raise self._closed()
        self._waiters.append(waiter)
        waiter.answer.add_done_callback(lambda _: self._waiters.remove(waiter))
        if self.idle:
            self._task = asyncio.create_task(self._run())

    def close(self, why: Callable[[], StageLost]) -> None:
        """Answers those who wait, and who comes later, with `why`."""
        self._closed = why
        self._refuse(why())

    async def _run(self) -> None:
        try:
            while self.waiting():  # nothing is awaited from here to the end: who joins is seen
                async with self._turn:
                    await self._work(self.waiting())
                await asyncio.sleep(0)  # so are those who have left or joined meanwhile
        except Exception as error:
            self._refuse(error)
        except asyncio.CancelledError:
            self._refuse(StageLost("the stage's loop was stopped"))
            raise

    def _refuse(self, error: Exception) -> None:
        for waiter in self.waiting():
            waiter.answer.set_exception(error)


async def apart(
    call: Callable[[Sequence[Who]], Awaitable[None]], batch: Sequence[Who]
) -> list[Sequence[Who]]:
    """A call for all and, if it fails, one for each half, and so on: who fails alone gets the error
    for an answer. Returns the parts for which a call went well, in order.

    n take at most 2n - 1 calls; one who cannot be served costs about 2 log2(n) of them, and a batch
    that is only too large two, if its halves are not.
    """
    try:
        await call(batch)
    except Exception as error:
        if len(batch) == 1:
            if not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return []
    else:
        return [batch]
    middle = len(batch) // 2
    return [*await apart(call, batch[:middle]), *await apart(call, batch[middle:])]
