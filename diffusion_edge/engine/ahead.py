"""Texts that come ahead of their latents, encoded while a stage has nothing else to do.

A stage that holds an image works for it. When it holds none it encodes what it was told, in the
order in which that came, in calls as large as any. So nobody who is there waits for the text of
somebody who is not; at worst who comes during such a call waits for its end. A text that was not
encoded when its latent comes waits in line then, as that of any other image. What is told may get
lost, and what is kept is bounded: it is only sooner, never needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from diffusion_edge.engine.pace import Clock
from diffusion_edge.engine.run import Encoded
from diffusion_edge.engine.together import Asked, Made, Together
from diffusion_edge.packet import Packet
from diffusion_edge.plan import Plan
from diffusion_edge.view import Told

MOST, MOST_BYTES = 256, 256 * 2**20
"""Latents that are expected, and bytes of their encoded texts, at most."""

LEASE_S = 600.0
"""A text is kept no longer, and no longer than its work."""


@dataclass(eq=False)
class Notice:
    """A span that is to come: the packet as it will be, without its latent. until: on the clock,
    when it is forgotten. asked: its text in the line, None before it is there."""

    packet: Packet
    until: float
    asked: Asked[Packet, Encoded] | None = None

    @property
    def encoded(self) -> bool:
        return self.asked is not None and self.asked.answer.done()

    @property
    def nbytes(self) -> int:
        if self.asked is None or not self.encoded:
            return 0
        return self.asked.answer.result().result.nbytes

    def told(self) -> Told:
        packet = self.packet
        return Told(packet.request_id, packet.image, packet.plan.start, not self.encoded)

    def end(self) -> None:
        """What is being encoded is for nobody."""
        if self.asked is not None:
            self.asked.answer.cancel()


Key = tuple[str, int, int]


class Ahead:
    """What a stage expects. texts: the line of texts; at_once: how many of it go into a call. idle:
    whether the stage holds nothing. Call `look` when it has come to hold nothing."""

    def __init__(
        self,
        texts: Together[Packet, Encoded],
        clock: Clock,
        *,
        at_once: int,
        idle: Callable[[], bool],
    ) -> None:
        self._texts = texts
        self._clock = clock
        self._at_once = at_once
        self._idle = idle
        self._notices: dict[Key, Notice] = {}
        self._making = 0

    def expect(self, packet: Packet, stage: str) -> None:
        """All spans on the stage but the first of the plan, and no others of the image that were
        expected before. packet: as it leaves for that one."""
        before = self._of(packet)
        plan, give_up = packet.plan, packet.left.give_up
        until = self._clock.now() + min(LEASE_S if give_up is None else give_up, LEASE_S)
        for k, span in enumerate(plan.spans):
            if k and span.stage == stage:
                rest = Plan(plan.spans[k:], plan.codecs[k:], plan.reason)
                bare = replace(packet, plan=rest, latent=None, history=(), schedule=None)
                self._keep(Notice(bare, until), before)
        for notice in before:
            notice.end()
        self.look()

    def _of(self, packet: Packet) -> list[Notice]:
        """Takes out what was expected of an image."""
        image = packet.request_id, packet.image
        return [self._notices.pop(key) for key in list(self._notices) if key[:2] == image]

    def _keep(self, notice: Notice, before: list[Notice]) -> None:
        """before: of the same image; the first that says the same has its text."""
        if len(self.notices()) >= MOST:
            return
        known = next((one for one in before if _says(one.packet) == _says(notice.packet)), None)
        if known is not None:
            before.remove(known)
            notice.asked = known.asked
        self._notices[_key(notice.packet)] = notice

    def forget(self, request: str) -> None:
        for key in [key for key in self._notices if key[0] == request]:
            self._notices.pop(key).end()

    def close(self) -> None:
        """Forgets all."""
        for request in {request for request, _, _ in self._notices}:
            self.forget(request)

    def take(self, packet: Packet) -> Asked[Packet, Encoded] | None:
        """The text of a packet that has come, encoded or in line to be; None if it is neither."""
        notice = self._notices.pop(_key(packet), None)
        if notice is None:
            return None
        if _says(notice.packet) != _says(packet):
            notice.end()
            return None
        return notice.asked

    def notices(self) -> list[Notice]:
        """In the order in which they came, without those whose time is over."""
        now = self._clock.now()
        for key in [key for key, notice in self._notices.items() if notice.until < now]:
            self._notices.pop(key).end()
        return list(self._notices.values())

    def look(self) -> None:
        """Asks for the next texts, if it is time for them."""
        if self._making or not self._notices or not self._idle():
            return
        notices = self.notices()
        if sum(notice.nbytes for notice in notices) >= MOST_BYTES:
            return
        for notice in [one for one in notices if one.asked is None][: self._at_once]:
            self._making += 1
            notice.asked = self._texts.ask(notice.packet)
            notice.asked.answer.add_done_callback(self._made)

    def _made(self, answer: asyncio.Future[Made[Encoded]]) -> None:
        self._making -= 1
        if not answer.cancelled() and answer.exception() is not None:
            lost = [k for k, n in self._notices.items() if n.asked and n.asked.answer is answer]
            for key in lost:  # when its latent comes it is tried again
                del self._notices[key]
        self.look()


def _key(packet: Packet) -> Key:
    """An image comes to a stage for each of its spans there."""
    return packet.request_id, packet.image, packet.plan.start


def _says(packet: Packet) -> tuple[str, str, float]:
    """What texts are made of."""
    return packet.prompt, packet.negative_prompt, packet.guidance_now
