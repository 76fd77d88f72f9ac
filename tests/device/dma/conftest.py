"""The machine that endpoints are tried on."""

from tests.device.endpoints.conftest import guest

__all__ = ["guest"]
