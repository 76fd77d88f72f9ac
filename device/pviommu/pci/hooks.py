"""Hooks of a function: what happens to it, for a subclass to act on, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from vfio_user import Steps

__all__ = ["Attempts", "Hooks"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Hooks:
    """What a subclass overrides. Handlers of registers are hooks, too."""

    def on_reset(self) -> None:
        """The function is reset: device reset, function-level reset, or the client is gone."""

    def on_function_reset(self) -> None:
        """The function was reset by its own PCI Express capability; as :meth:`on_reset` unless it matters by whom."""
        self.on_reset()

    def on_bus_master(self, enabled: bool) -> None:
        """The guest allowed or forbade DMA."""

    def on_ram_changed(self, first: int, nr: int) -> None:
        """RAM came or went among ``nr`` frames from ``first`` on, by a request of the client."""

    def on_shared_renewed(self) -> None:
        """Shared memory is zeros again: publish there what there is."""

    def check_client(self) -> None:
        """Called when the client has announced its memory; raise :class:`vfio_user.RequestError` to refuse it."""

    def settle(self) -> None:
        """Requests that came together are done, and their replies are not sent yet."""


class Attempts:
    """Every call of a hook goes through here. What one raises goes on to the caller; a subclass may decide what else it
    means.
    """

    failed: bool = False
    """whether one of them failed since the last reset: then no hook is called and no BAR is reached"""

    def make(self, what: str, hook: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R | None:
        """Call ``hook``. ``what`` it is, for logs. None if it was not called, or raised something."""
        return hook(*arguments, **named)

    def begin(
        self, what: str, hook: Callable[_P, Steps | None], *arguments: _P.args, **named: _P.kwargs
    ) -> Steps | None:
        """The same for a hook that may leave something to do in steps, which are attempts as well."""
        return hook(*arguments, **named)

    def reset(self) -> None:
        """The function is about to be reset: whatever failed, its hooks are called again."""
