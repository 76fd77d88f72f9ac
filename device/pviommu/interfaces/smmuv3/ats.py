"""ATS: translation requests of endpoints, their translated transactions, and invalidations of their caches (ATCs).

The rules are those of IHI 0070, 3.9.1, for an SMMU that records no configuration errors of ATS (IDR0.ATSRECERR is 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from typing import NamedTuple, Protocol

from smmuv3.events import Event, EventClass, EventType
from smmuv3.registers import Cr0
from smmuv3.structures import SteAts, SteConfig

from ...dma.atc import Atc, AtcEntry, Invalidation
from ...dma.pages import MOST_PAGES, PageRequester
from ...engine import Access, Parent, Refusal, Run, Wait
from ...engine.nested import Stage1Answer
from ...engine.walk import ReadRefusal, Tables, Update, WalkFault
from .caches import Tag, Translations
from .configuration import Refused, Stream, StreamTable
from .page_requests import PageRequests
from .translation import Caches, Found, Request, Stale, StreamWalker, World, pretended

__all__ = ["AtsWalker", "Denial", "InvalidationWait", "Invalidations"]

_BOTH = Access.READ | Access.WRITE
_DENIED = (EventType.F_ADDR_SIZE, EventType.F_ACCESS, EventType.F_TRANSLATION, EventType.F_PERMISSION)


class Status(Enum):
    """How a translation request is completed that gives no translation."""

    DENIED = "Success, which allows nothing of what was asked for"
    UNSUPPORTED = "Unsupported Request: there is no ATS"
    ABORT = "Completer Abort: the configuration is wrong, or cannot be read"


class Denial(NamedTuple):
    """The completion of a translation request without a translation."""

    status: Status
    event: Event | None = None
    """what the guest is told"""


class AtsWalker(StreamWalker):
    """The walker of an endpoint with an ATC, which comes first. What the ATC has goes to the SMMU as a translated
    transaction. Otherwise the endpoint makes a translation request, and where that gives nothing an ordinary request,
    whose refusal the guest is told of.
    """

    def __init__(
        self,
        world: World,
        sid: int,
        ssid: int | None,
        atc: Atc,
        record: Callable[[Event], object],
        requests: PageRequests,
    ) -> None:
        """``record`` writes an event for the guest. ``requests``: of the SMMU."""
        super().__init__(world, sid, ssid)
        self._atc = atc
        self._record = record
        self._requests = requests
        self._asks = requests.of(sid)
        """what the endpoint asks for pages by, if it does"""

    def span(self, address: int, length: int, access: Access) -> tuple[Sequence[Run], int]:
        """Nothing, while there is ATS: a core knows nothing of the ATC."""
        return ((), address) if self._atc.is_enabled() else super().span(address, length, access)

    def walk(self, iova: int, length: int, access: Access, parent: Parent) -> Stage1Answer:
        if not self._atc.is_enabled():
            return super().walk(iova, length, access, parent)
        entry = self._atc.find(self._ssid, iova, access)
        if entry is None:
            if self._asks is not None and self._asks.is_waiting(self._ssid, iova >> 12):
                return Wait.PAGE_REQUEST
            answer = self.request(iova, access)
            if isinstance(answer, Denial):
                if answer.event is not None:
                    self._record(answer.event)
                if answer.status is Status.DENIED and self._asks is not None:
                    outcome = self._ask(self._asks, iova, length, access)
                    if outcome is not None:
                        return outcome
                return super().walk(iova, length, access, parent)
            entry = self._atc.add(self._ssid, iova, *answer)
        elif self._world.config.strict:
            stale = self._compare(iova, access, entry)
            if stale is not None:
                self._world.on_stale(stale)
        offset = iova & (1 << entry.shift) - 1
        found = self._pass(entry.output | offset, access)
        if isinstance(found, Found):
            found = Found(found.output, min(found.shift, entry.shift), found.access & entry.access)
        return self._answered(iova, found)

    def _ask(self, requester: PageRequester, iova: int, length: int, access: Access) -> Refusal | Wait | None:
        """Ask for the pages of a request that there are no translations of, if the endpoint may. Refused ones are no
        event: the guest has said so itself.
        """
        first = iova >> 12
        if requester.was_refused(self._ssid, first):
            self.refused = Refused(None)
            return Refusal.NOT_MAPPED
        if not requester.is_enabled() or not requester.allocation():
            return None
        last = min(iova + length - 1 >> 12, first + MOST_PAGES - 1)
        pages = [page for page in range(first, last + 1) if self._is_missing(page << 12, access)]
        self._requests.ask(self.sid, self._ssid, pages, access)
        return Wait.PAGE_REQUEST

    def _is_missing(self, address: int, access: Access) -> bool:
        answer = self.request(address, access)
        return isinstance(answer, Denial) and answer.status is Status.DENIED

    # -- translation requests ---------------------------------------------------------------------------------------

    def request(self, iova: int, access: Access) -> Found | Denial:
        """Complete a translation request for an access; one that is to read only says so (NW)."""
        world = self._world
        bad = Denial(Status.UNSUPPORTED, Event(EventType.F_BAD_ATS_TREQ, self.sid, self._ssid, iova))
        if not world.registers.has(Cr0.SMMUEN):
            return bad
        stream = self._stream(iova, world.on_stale)
        if isinstance(stream, Refused):
            return Denial(Status.ABORT)
        if stream.config is SteConfig.ABORT:
            return Denial(Status.UNSUPPORTED)
        mode = self._mode(stream)
        if mode is SteAts.NONE:
            return bad
        found = self._both(Request(iova, access, stream, world.on_stale))
        if isinstance(found, Refused):
            is_denied = found.event is not None and found.event.type in _DENIED
            return Denial(Status.DENIED if is_denied else Status.ABORT)
        first, second = found
        return Found(first.output, second.shift, second.access) if mode is SteAts.SPLIT else second

    def _mode(self, stream: Stream) -> SteAts:
        """The effective value of STE.EATS."""
        is_split = stream.ats is SteAts.SPLIT
        return SteAts.NONE if is_split and not self._world.registers.has(Cr0.ATSCHK) else stream.ats

    def kept(self, iova: int, access: Access) -> Stale | None:
        entry = self._atc.find(self._ssid, iova, access) if self._atc.is_enabled() else None
        return None if entry is None else self._compare(iova, access, entry)

    def _compare(self, iova: int, access: Access, entry: AtcEntry) -> Stale | None:
        """An entry that the SMMU would not give now."""
        now = _Fresh(self._world, self.sid, self._ssid).request(iova, access)
        output = entry.output | iova & (1 << entry.shift) - 1
        if isinstance(now, Found) and now.output == output and not entry.access & ~now.access:
            return None
        told = (now.output, now.access) if isinstance(now, Found) else now
        return Stale("ATC", self.sid, self._ssid, iova, (output, entry.access), told)

    # -- translated transactions ------------------------------------------------------------------------------------

    def _pass(self, address: int, access: Access) -> Found | Refused:
        """What becomes of a translated transaction. It has no SubstreamID (IDR3.PASIDTT is 0)."""
        registers, bits = self._world.registers, self._world.config.address_bits
        is_read = not access & Access.WRITE
        forbidden = Refused(Event(EventType.F_TRANSL_FORBIDDEN, self.sid, None, address, is_read))
        if not registers.has(Cr0.SMMUEN):
            return forbidden
        if address >> bits:
            return Refused(None)
        if not registers.has(Cr0.ATSCHK):
            return Found(address, bits, _BOTH)
        stream = self._stream(address, self._world.on_stale)
        if isinstance(stream, Refused) or stream.config is SteConfig.ABORT:
            return Refused(None)
        mode = self._mode(stream)
        if mode is SteAts.NONE:
            return forbidden
        if mode is SteAts.FULL:
            return Found(address, bits, _BOTH)
        assert stream.stage2 is not None  # or the STE would be illegal
        request = Request(address, access, stream, self._world.on_stale)
        found = self._stage2(request, stream.stage2, address, access, EventClass.IN)
        if isinstance(found, Refused) and found.event is not None:
            return found._replace(event=found.event._replace(ssid=None))
        return found


class _Fresh(AtsWalker):
    """What the structures and tables in memory say, with nothing cached; nothing is changed there."""

    def __init__(self, world: World, sid: int, ssid: int | None) -> None:
        config = replace(world.config, cache_entries=0, strict=False)
        table = StreamTable(config, world.registers, world.memory)
        bare = replace(world, config=config, table=table, caches=Caches(config), on_stale=lambda _: None)
        super().__init__(bare, sid, ssid, Atc(), lambda _: None, PageRequests(lambda _: None))

    def _cached(
        self,
        cache: Translations,
        what: str,
        tag: Tag,
        request: Request,
        address: int,
        access: Access,
        chosen: tuple[Tables, int],
        read: Callable[[int], int | ReadRefusal],
        _: Update,
    ) -> Found | WalkFault:
        return super()._cached(cache, what, tag, request, address, access, chosen, read, pretended)


class InvalidationWait:
    """What a CMD_SYNC waits for."""

    is_forgotten = False

    def __init__(self, outstanding: dict[int, Invalidation]) -> None:
        self._outstanding = outstanding
        self.is_late = False
        """whether its time is up"""

    @property
    def is_over(self) -> bool:
        return self.is_late or not self._outstanding

    def expire(self) -> None:
        """Its time is up."""
        self.is_late = True


class Timer(Protocol):
    """See :class:`.hosted.Timer`."""

    def cancel(self) -> None: ...


class Invalidations:
    """Invalidations that ATCs have not answered."""

    def __init__(self, atcs: Callable[[int], Atc | None], later: Callable[[Callable[[], None]], Timer | None]) -> None:
        """``atcs``: of a StreamID. ``later`` calls back when a CMD_SYNC has waited long enough."""
        self._atcs = atcs
        self._later = later
        self._outstanding: dict[int, Invalidation] = {}
        self._next = 0
        self._timer: Timer | None = None
        self.complete: Callable[[int, int], None] = self._complete
        """an endpoint answers: its StreamID, and the invalidation's number; looked up for each, as a rule may stand
        before it"""

    def __len__(self) -> int:
        return len(self._outstanding)

    def send(self, sid: int, told: Invalidation) -> None:
        """An endpoint is to forget something. Who has no ATC is not asked: nothing is there that could answer."""
        atc = self._atcs(sid)
        if atc is None:
            return
        number, self._next = self._next, self._next + 1
        self._outstanding[number] = told
        atc.invalidate(told)
        self.complete(sid, number)

    def _complete(self, _sid: int, number: int) -> None:
        self._outstanding.pop(number, None)

    @property
    def are_outstanding(self) -> bool:
        """Whether a CMD_SYNC would wait."""
        return bool(self._outstanding)

    def wait(self) -> InvalidationWait | None:
        """What a CMD_SYNC waits for, if for anything."""
        if not self._outstanding:
            return None
        wait = InvalidationWait(self._outstanding)
        self._timer = self._later(wait.expire)
        return wait

    def end(self) -> bool:
        """The wait is over. Whether all was answered; what was not is not waited for again."""
        if self._timer is not None:
            self._timer.cancel()
        is_answered = not self._outstanding
        self._outstanding.clear()
        return is_answered

    def clear(self) -> None:
        """Forget all of it."""
        self._outstanding.clear()
