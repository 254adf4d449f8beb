"""The parts of spans on one device: calls that encode texts, forward passes, calls that decode
pictures. Each part has a line of those who wait for it; the lines take turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile

import torch

from diffusion_edge import batching
from diffusion_edge.batching import CELLS, TEXTS, Batching, Sample
from diffusion_edge.curves import cells_of
from diffusion_edge.emulation import Emulate
from diffusion_edge.engine import run as core
from diffusion_edge.engine.lanes import Lanes
from diffusion_edge.engine.measure import ROWS, measure
from diffusion_edge.engine.pace import Clock, OwnPace, StatedPace
from diffusion_edge.engine.run import Encoded, Trajectory
from diffusion_edge.engine.seconds import Seconds
from diffusion_edge.engine.stepper import Stepper
from diffusion_edge.engine.together import Together
from diffusion_edge.engine.turn import Seat, Turns
from diffusion_edge.errors import StageLost
from diffusion_edge.families.base import Family
from diffusion_edge.packet import Packet
from diffusion_edge.request import Picture


class Parts:
    """The three lines of a stage, and the seconds that parts are known to take.

    The parameters are those of `Worker`. turns: whose turn it is. known: None before `warm_up`.
    """

    def __init__(
        self,
        family: Family,
        stage: str,
        clock: Clock,
        *,
        threads: int,
        emulate: Emulate | None,
        mode: Batching,
        rows: int | None,
        together: bool,
        cut: bool,
    ) -> None:
        self._family = family
        self._stage = stage
        self._clock = clock
        self._emulate = emulate
        self._mode: Batching = mode
        self._asked_rows = rows
        self._together = together and mode == "in-flight" and emulate is None
        self._cuts = threads if cut and family.device.type == "cpu" else 1
        self._cells = 0
        self.known: Seconds | None = None
        self.lanes = Lanes(f"steps-{stage}", threads)
        self.turns = Turns()
        pace = StatedPace(clock) if emulate else OwnPace(clock)
        self.texts: Together[Packet, Encoded] = Together(
            self._encode,
            clock,
            Seat(self.turns, "texts"),
            most=lambda waiting: min(len(waiting), self.texts_at_once),
            pace=pace,
            seconds=lambda packets: self.seconds.encoding(self._texts_of(packets)),
        )
        self.pictures: Together[Trajectory, Picture] = Together(
            self._decode,
            clock,
            Seat(self.turns, "pictures"),
            most=lambda waiting: alike(waiting) if self._together else 1,
            pace=pace,
            seconds=lambda ended: self.seconds.decoding(latent_cells(ended), len(ended)),
        )
        self.stepper = Stepper(
            self._step,
            clock,
            Seat(self.turns, "steps"),
            mode=mode,
            rows=self._rows,
            pace=pace,
            seconds=lambda cells, rows: self.seconds.step(cells, rows),
            on_step=self._learn,
        )

    async def warm_up(self, size: int, solver: str, others: Sequence[int] = ()) -> Seconds:
        """As `Worker.warm_up`."""
        sizes = (size, *others)
        measured = await measure(self._family, sizes, solver, self.lanes, self._clock, self._cuts)
        self._cells = cells_of(self._family.latent_shape(size, size))
        self.known = Seconds.of(self._emulate, self._cells) if self._emulate else measured
        return measured

    @property
    def seconds(self) -> Seconds:
        """RuntimeError before `warm_up`."""
        if self.known is None:
            raise RuntimeError(f"the stage {self._stage!r} is not warmed up")
        return self.known

    def close(self, why: Callable[[], StageLost]) -> None:
        """Ends the threads. Who waits, or comes later, gets `why`."""
        for line in (self.texts.line, self.stepper.line, self.pictures.line):
            line.close(why)
        self.lanes.close()

    # ------------------------------------------------------------------ what packets are to them

    @property
    def texts_at_once(self) -> int:
        """Packets whose texts are encoded in one call at most."""
        return TEXTS if self._together else 1

    def sample(self, packet: Packet, now: float) -> Sample:
        """What the rules of batching are told of a packet that arrives now."""
        rows, doubled = self._rows_of(packet), self.doubled(packet)
        shape = self._family.latent_shape(packet.width, packet.height)
        cells = cells_of(shape)
        alone_s = packet.plan.spans[0].steps * self.seconds.step(cells, rows)
        due = batching.due(now, alone_s, packet.left.shifted(now).due, self._mode)
        return Sample(key=(shape, doubled), rows=rows, cells=cells, due=due)

    def doubled(self, packet: Packet) -> bool:
        return self._family.guiding == "doubled" and packet.guidance_now > 1

    def _rows_of(self, packet: Packet) -> int:
        """In a forward pass, and texts in a call."""
        return 2 if self.doubled(packet) and not self._emulate else 1

    def _texts_of(self, packets: Sequence[Packet]) -> int:
        return sum(map(self._rows_of, packets))

    # ------------------------------------------------------------------ rows of a forward pass

    @property
    def batches(self) -> bool:
        """Whether samples share forward passes; not where the seconds of one sample alone are all
        that is stated."""
        alone = self._emulate is not None and len(self._emulate.curve) == 1
        return self._mode != "off" and not alone

    @property
    def most_rows(self) -> int | None:
        """Of a forward pass, as far as mode, config and memory bind it: those of the default size,
        where memory was too small for some. None for one sample at a time."""
        if not self.batches:
            return None
        if self._mode == "reproducible":
            return self._asked_rows or batching.FIXED_ROWS
        return self.seconds.most(self._cells, self._asked_rows or ROWS[-1])

    def _rows(self, company: Sequence[Sample]) -> int | None:
        """Of a forward pass at most that these could share; None for one sample at a time."""
        if not self.batches:
            return None
        if self._mode == "reproducible":
            return self._asked_rows or batching.FIXED_ROWS
        first, waiting = company[0], sum(sample.rows for sample in company)
        return self.seconds.rows(first.cells, first.rows, waiting, self._asked_rows or ROWS[-1])

    def steps_s(self, cells: int, work: Sequence[tuple[int, int]]) -> float:
        """Seconds that the steps left take of samples of one size, given as (steps, rows)."""
        seconds = self.seconds
        if not self.batches:
            return sum(steps * seconds.step(cells, rows) for steps, rows in work)
        return batching.drained_s(work, seconds.curve(cells))

    # ------------------------------------------------------------------ one call, one pass

    async def _encode(self, packets: Sequence[Packet]) -> Sequence[Encoded]:
        """All in one call."""
        began = self._clock.now()
        encoded = await self.lanes.run(partial(core.take_up, self._family, packets))
        took_s = self._clock.now() - began
        self.known = self.seconds.after_encoding(self._texts_of(packets), took_s)
        return encoded

    async def _decode(self, ended: Sequence[Trajectory]) -> Sequence[Picture]:
        """All in one call."""
        began = self._clock.now()
        pictures = await self.lanes.run(partial(core.decode_all, self._family, ended))
        took_s = self._clock.now() - began
        self.known = self.seconds.after_decoding(latent_cells(ended), len(ended), took_s)
        return pictures

    async def _step(self, trajectories: Sequence[Trajectory], rows: int) -> list[Trajectory]:
        cells = latent_cells(trajectories)
        try:
            return await self.lanes.step(self._family, trajectories, self._lanes_for(cells, rows))
        except torch.OutOfMemoryError:
            self.known = self.seconds.out_of_memory(cells, rows)
            raise

    def _learn(self, cells: int, rows: int, took_s: float) -> None:
        self.known = self.seconds.after_step(cells, rows, took_s)

    def _lanes_for(self, cells: int, rows: int) -> int:
        """Into how many parts a forward pass is cut. In mode `reproducible` that follows from its
        rows alone, and the parts are equal."""
        if self._mode == "reproducible":
            return self._cuts if rows % self._cuts == 0 else 1
        return self.seconds.lanes_for(cells, rows)


def latent_cells(trajectories: Sequence[Trajectory]) -> int:
    """Of the latent of each, which all have one shape."""
    return cells_of(trajectories[0].latent.shape[1:])


def alike(waiting: Sequence[Trajectory]) -> int:
    """How many latents of the first one's shape lead, up to CELLS in all; at least one."""
    shape = waiting[0].latent.shape
    same = takewhile(lambda trajectory: trajectory.latent.shape == shape, waiting)
    return min(len(list(same)), max(1, CELLS // latent_cells(waiting)))
