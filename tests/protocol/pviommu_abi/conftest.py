"""Where the checkout is, and how a record is laid out."""

from __future__ import annotations

from pathlib import Path

import pytest

from wire_layout import Record


@pytest.fixture
def checkout() -> Path:
    """The root folder of the checkout."""
    return Path(__file__).parents[3]


def offsets(record: type[Record]) -> dict[str, int]:
    """Field name to offset."""
    return {field.name: field.offset for field in record.FIELDS}
