"""PRI: page requests of endpoints, on their way to the guest, and its answers on their way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from smmuv3.page_requests import PageRequest

from ...dma.pages import PageRequester, Response
from ...engine import Access

__all__ = ["PageRequests"]


class PageRequests:
    """Of all endpoints behind an SMMU."""

    def __init__(self, record: Callable[[PageRequest], Response | None]) -> None:
        """``record`` writes one for the guest, and returns the answer if it comes from the SMMU."""
        self._record = record
        self._requesters: dict[int, PageRequester] = {}
        self.respond: Callable[[int, int, Response], None] = self._respond
        """an endpoint is answered: its StreamID, the group and the code; looked up for each, as a rule may stand before
        it"""

    def add(self, sid: int, requester: PageRequester) -> None:
        """An endpoint that may ask."""
        self._requesters[sid] = requester

    def of(self, sid: int) -> PageRequester | None:
        """What asks for an endpoint."""
        return self._requesters.get(sid)

    def ask(self, sid: int, ssid: int | None, pages: Sequence[int], access: Access) -> None:
        """An endpoint asks for pages, as many as it may: one group, whose last one says so."""
        begun = self._requesters[sid].begin(ssid, pages)
        if begun is None:
            return
        group, count = begun
        wants = bool(access & Access.READ), bool(access & Access.WRITE)
        for number, page in enumerate(pages[:count], 1):
            response = self._record(PageRequest(sid, ssid, page << 12, group, *wants, number == count))
            if response is not None:
                self.respond(sid, group, response)
                return

    def _respond(self, sid: int, group: int, response: Response) -> None:
        requester = self._requesters.get(sid)
        if requester is not None:
            requester.answer(group, response)
