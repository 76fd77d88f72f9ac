"""Both sides as ours, so that no QEMU is needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pviommu.differential.sides import Ours


@pytest.fixture
def pair() -> Iterator[tuple[Ours, Ours]]:
    sides = Ours(), Ours()
    yield sides
    for side in sides:
        side.close()
