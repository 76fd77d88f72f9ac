"""Places at which a request to /dev/iommu can fail whatever it asks for. They have no arguments."""

from __future__ import annotations

from ...interfaces.iommufd.places import refusal
from ..actions import Do
from .base import Args, Fails, Outcome, Point

__all__ = ["RequestPoint"]


class RequestPoint(Point):
    """A place that is passed on the way through a request."""

    def do_fail(self, do: Do, _args: Args) -> Outcome:
        assert do.fail
        return Fails(refusal(self.probe.name.rpartition(".")[2], do.fail), do.fail)
