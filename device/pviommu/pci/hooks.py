"""Hooks of a function: methods that a subclass overrides to act on what happens to it, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from vfio_user import Steps

from ..hosted import Host

__all__ = ["Attempts", "Hooks"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Hooks:
    """What a subclass overrides. Handlers of registers are hooks, too."""

    def on_reset(self) -> None:
        """The function is reset: device reset, function-level reset, or the client is gone."""

    def on_function_reset(self) -> None:
        """The function was reset through its own PCI Express capability. The same as :meth:`on_reset`, unless a
        subclass makes a difference."""
        self.on_reset()

    def on_served(self, host: Host) -> None:
        """A loop serves it from now on."""

    def on_configured(self) -> None:
        """The guest wrote to configuration space."""

    def on_bus_master(self, enabled: bool) -> None:
        """The guest allowed or forbade DMA."""

    def on_ram_changed(self, first: int, nr: int) -> None:
        """A request of the client added or removed RAM within the ``nr`` frames from ``first`` on."""

    def on_shared_renewed(self) -> None:
        """Shared memory is all zeros again: publish there whatever the guest is to find."""

    def check_client(self) -> None:
        """Called when the client has announced its memory; raise :class:`vfio_user.RequestError` to refuse it."""

    def settle(self) -> None:
        """Requests that came together are done, and their replies are not sent yet."""


class Attempts:
    """Every call of a hook goes through here. An exception goes on to the caller; a subclass may decide otherwise."""

    failed: bool = False
    """whether a hook has failed since the last reset: if so, no hook is called and no BAR can be reached"""

    def make(self, what: str, hook: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R | None:
        """Call ``hook``; ``what`` names it in logs. None if it was not called, or raised something."""
        return hook(*arguments, **named)

    def begin(
        self, what: str, hook: Callable[_P, Steps | None], *arguments: _P.args, **named: _P.kwargs
    ) -> Steps | None:
        """The same for a hook that may return steps, each of which is an attempt as well."""
        return hook(*arguments, **named)

    def reset(self) -> None:
        """The function is about to be reset: its hooks are called again, whatever has failed."""
