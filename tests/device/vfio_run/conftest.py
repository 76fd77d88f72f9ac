from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_request_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever programs say, no exception is left to the server's last resort."""
    yield
    assert [record.exc_text for record in caplog.get_records("call") if record.msg.startswith("a request failed")] == []
