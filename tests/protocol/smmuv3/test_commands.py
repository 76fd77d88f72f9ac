"""Encodings of commands, against vectors that were computed by hand from the architecture's tables."""

import pytest

from smmuv3.commands import (
    ALL_STREAMS,
    COMMAND,
    Completion,
    Opcode,
    PriResponse,
    atc_inv,
    cfgi,
    pri_resp,
    resume,
    stall_term,
    sync,
    tlbi,
)


@pytest.mark.parametrize(
    ("command", "dwords"),
    [
        (cfgi(Opcode.CFGI_STE_RANGE, span=ALL_STREAMS), (0x4, 0x1F)),
        (cfgi(Opcode.CFGI_STE, 0x20, leaf=True), (0x2000000003, 1)),
        (cfgi(Opcode.CFGI_CD, 0x20, leaf=True), (0x2000000005, 1)),
        (cfgi(Opcode.CFGI_CD, 0x20, ssid=3), (0x2000003805, 0)),
        (tlbi(Opcode.TLBI_NH_ASID, asid=5), (0x0005000000000011, 0)),
        (tlbi(Opcode.TLBI_NH_VA, 0x12345000, asid=5, leaf=True), (0x0005000000000012, 0x12345001)),
        (
            tlbi(Opcode.TLBI_NH_VA, 0x40000000, asid=5, leaf=True, granule=1, scale=9),
            (0x0005000000900012, 0x40000401),
        ),
        (tlbi(Opcode.TLBI_NSNH_ALL), (0x30, 0)),
        (atc_inv(0x20), (0x2000000040, 52)),
        (atc_inv(0x20, 0x12345000, 3), (0x2000000040, 0x12345003)),
        (atc_inv(0x20, 0, 0, ssid=5, every_ssid=True), (0x2000005A40, 0)),
        (pri_resp(0x20, 0x1FF, PriResponse.SUCCESS), (0x2000000041, 0x21FF)),
        (pri_resp(0x20, 1, PriResponse.INVALID, ssid=5), (0x2000005841, 0x1001)),
        (resume(0x20, 0xABCD, retry=True), (0x2000001044, 0xABCD)),
        (resume(0x20, 5, retry=False), (0x2000002044, 5)),
        (stall_term(0x20), (0x2000000045, 0)),
        (sync(Completion.SEV), (0x0FC02046, 0)),
        (sync(Completion.IRQ), (0x0FC01046, 0)),
    ],
)
def test_commands_are_encoded_as_the_architecture_says(command, dwords):
    assert COMMAND.unpack(command) == dwords


def test_what_does_not_fit_a_field_is_an_error():
    with pytest.raises(ValueError, match="Cfgi0: 0x100000 does not fit SSID, bits 31:12"):
        cfgi(Opcode.CFGI_CD, 1, ssid=1 << 20)
