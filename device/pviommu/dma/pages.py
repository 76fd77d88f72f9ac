"""Page requests of an endpoint (PRI; PCI Express, 10.4): it asks for groups of pages, and waits for their answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum

__all__ = ["GROUPS", "MOST_PAGES", "PageRequester", "Response"]

GROUPS = 512
"""Numbers of groups."""
MOST_PAGES = 16
"""of a group"""
_Page = tuple[int | None, int]
"""PASID and number of the page."""


class Response(IntEnum):
    """Response codes."""

    SUCCESS = 0
    INVALID = 1
    """a page is not there, or does not allow what was asked for"""
    FAILURE = 15
    """page requests are not possible; the endpoint makes no more"""


class PageRequester:
    """What one endpoint has asked for."""

    def __init__(self) -> None:
        self.is_enabled: Callable[[], bool] = lambda: False
        """whether the guest has turned page requests on at the endpoint, and no answer was a failure since"""
        self.allocation: Callable[[], int] = lambda: 0
        """pages that may be asked for at a time, as the guest has said"""
        self.on_failure: Callable[[], None] = lambda: None
        """the answer was a failure"""
        self.on_unexpected: Callable[[], None] = lambda: None
        """a group was answered that there is not"""
        self._groups: dict[int, list[_Page]] = {}
        self._refused: deque[list[_Page]] = deque(maxlen=GROUPS)
        """groups whose answer was no, which their DMA has not met yet"""

    def __len__(self) -> int:
        """Pages that were asked for and not answered yet."""
        return sum(map(len, self._groups.values()))

    def is_waiting(self, pasid: int | None, page: int) -> bool:
        """Whether this page was asked for, and that is not answered yet."""
        return any((pasid, page) in pages for pages in self._groups.values())

    def was_refused(self, pasid: int | None, page: int) -> bool:
        """Whether the last answer about a page was no; it and those that were asked for with it may be asked for again
        after this call.
        """
        for pages in self._refused:
            if (pasid, page) in pages:
                self._refused.remove(pages)
                return True
        return False

    def begin(self, pasid: int | None, pages: Sequence[int]) -> tuple[int, int] | None:
        """Ask for pages, the first :data:`MOST_PAGES` at most. The number of the group, and how many of them are in it;
        None if as many were asked for already as may be.
        """
        count = min(len(pages), MOST_PAGES, self.allocation() - len(self))
        group = next((number for number in range(GROUPS) if number not in self._groups), None)
        if count < 1 or group is None:
            return None
        self._groups[group] = [(pasid, page) for page in pages[:count]]
        return group, count

    def answer(self, group: int, response: Response) -> None:
        """A group was answered."""
        pages = self._groups.pop(group, None)
        if pages is None:
            self.on_unexpected()
            return
        if response is not Response.SUCCESS:
            self._refused.append(pages)
        if response is Response.FAILURE:  # no further answer is expected
            self._refused += self._groups.values()
            self._groups.clear()
            self.on_failure()

    def clear(self) -> None:
        """Forget everything."""
        self._groups.clear()
        self._refused.clear()
