"""The register frame, and structures in memory, against vectors."""

from smmuv3.registers import FRAME_SIZE, PAGE_1, REGISTER, REGISTERS, StreamTableConfig
from smmuv3.structures import Cd0, L1Std, Ste0, Ste1


def test_all_registers_are_in_the_frame_and_only_the_indices_of_two_queues_in_its_second_page():
    assert REGISTERS.end <= FRAME_SIZE
    second = {each.name: each.offset for each in REGISTERS if each.offset >= PAGE_1}
    assert second == {
        "EVENTQ_PROD": 0x100A8,
        "EVENTQ_CONS": 0x100AC,
        "PRIQ_PROD": 0x100C8,
        "PRIQ_CONS": 0x100CC,
    }
    assert REGISTER["STRTAB_BASE"].offset == 0x80
    assert REGISTER["EVENTQ_BASE"].offset == 0xA0
    assert REGISTER["PRIQ_BASE"].offset == 0xC0


def test_stream_tables_and_ids_are_encoded_as_the_architecture_says():
    assert StreamTableConfig(FMT=1, SPLIT=8, LOG2SIZE=16) == 0x10210
    assert StreamTableConfig(LOG2SIZE=16) == 0x10
    assert L1Std(0x4800_0000, SPAN=9) == 0x48000009


def test_linuxs_ste_and_cd_are_encoded_as_the_architecture_says():
    assert Ste0(0x47FFF000, V=1, CONFIG=5) == 0x47FFF00B
    assert Ste1(S1DSS=2, S1CIR=1, S1COR=1, S1CSH=3) == 0xD6
    cd = Cd0(T0SZ=16, IR0=1, OR0=1, SH0=3, EPD1=1, V=1, IPS=5, AA64=1, R=1, A=1, ASET=1, ASID=7)
    assert cd == 0x0007E205C0003510
