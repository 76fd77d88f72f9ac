"""Records of page requests, against vectors that were computed by hand from the architecture's figure."""

import struct

import pytest

from smmuv3.page_requests import PAGE_REQUEST_SIZE, PageRequest


@pytest.mark.parametrize(
    ("request_", "dwords"),
    [
        (PageRequest(8, None, 0x12345000, 3, True, False, True), (0x5000000000000008, 0x12345003)),
        (PageRequest(8, 5, 0x1000, 0x1FF, False, True, False), (0xA000000500000008, 0x11FF)),
        (PageRequest(0xFFFFFFFF, 0xFFFFF, 1 << 63, 0, True, True, True), (0xF00FFFFFFFFFFFFF, 1 << 63)),
    ],
)
def test_they_are_encoded_as_the_architecture_says_and_read_back(request_, dwords):
    record = request_.pack()

    assert len(record) == PAGE_REQUEST_SIZE
    assert struct.unpack("<QQ", record) == dwords
    assert PageRequest.unpack(record) == request_


def test_what_does_not_fit_a_field_is_an_error():
    with pytest.raises(ValueError, match="0x200 does not fit PRGINDEX"):
        PageRequest(8, None, 0, 0x200, True, False, True).pack()
