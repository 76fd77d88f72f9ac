"""SubstreamIDs, and tables of CDs."""

import pytest

from smmuv3.commands import Opcode, cfgi
from smmuv3.structures import Ste0, Ste1, SubstreamDefault

from .conftest import CD0, CDS, IOVA, LEAF, OUTSIDE, PAGE, SID

SSID = 0x45
OTHER, OTHER_TTB = PAGE + 0x10_0000, 0x4380_0000
LEAF_OF_CDS = 0x4280_0000


def record(kind, dword1=0, iova=0, last=0, ssid=None):
    substream = 0 if ssid is None else ssid << 12 | (1 << 11 if kind != 0x08 else 0)
    return (SID << 32 | substream | kind, dword1, iova, last)


def table(guest, *, bits=8, fmt=0, dss=SubstreamDefault.SUBSTREAM_0, cds=CDS):
    """An STE with a table of CDs."""
    ste0 = Ste0(cds, V=1, CONFIG=5, S1FMT=fmt, S1CDMAX=bits)
    guest.ste(ste0, Ste1(0xD4, S1DSS=dss))


@pytest.fixture
def guest(make_guest):
    """One whose SMMU has SubstreamIDs of 10 bits; substream SSID has tables of its own, in which IOVA is OTHER."""
    guest = make_guest(ssid_bits=10).start()
    table(guest)
    guest.map(OTHER | LEAF, root=OTHER_TTB)
    guest.cd(CD0 & ~(0xFFFF << 48) | 8 << 48, OTHER_TTB, place=CDS + SSID * 64)
    guest.substream = guest.path(SSID)
    return guest


def test_the_identification_says_that_there_are_substreams(guest):
    assert guest.driver.get("IDR1") >> 6 & 0x1F == 10
    assert guest.driver.get("IDR0") >> 19 & 1 == 1


def test_each_substream_has_its_tables_and_what_has_none_uses_the_first(guest):
    assert guest.lands(OTHER | 0x560, path=guest.substream)
    assert guest.lands(PAGE | 0x560)


@pytest.mark.parametrize(("fmt", "leaf_bits"), [(1, 6), (2, 10)])
def test_a_table_of_two_levels_has_leaves_of_4_or_64_kib(guest, fmt, leaf_bits):
    first = 0x4290_0000
    table(guest, bits=10, fmt=fmt, cds=first)
    guest.store_words(first + (SSID >> leaf_bits) * 8, LEAF_OF_CDS | 1)
    cd = LEAF_OF_CDS + (SSID & (1 << leaf_bits) - 1) * 64
    guest.cd(CD0 & ~(0xFFFF << 48) | 8 << 48, OTHER_TTB, place=cd)

    assert guest.lands(OTHER | 0x560, path=guest.substream)


def test_a_first_level_without_a_leaf_is_c_bad_substreamid(guest):
    table(guest, bits=10, fmt=1, cds=0x4290_0000)

    assert guest.put(path=guest.substream) is not None
    assert guest.put() is not None
    assert guest.records() == [record(0x08, ssid=SSID), record(0x08, ssid=0)]


def test_a_leaf_beyond_the_output_size_is_c_bad_substreamid(guest):
    table(guest, bits=10, fmt=1, cds=0x4290_0000)
    guest.store_words(0x4290_0000 + 8, 1 << 44 | 1)

    assert guest.put(path=guest.substream) is not None
    assert guest.records() == [record(0x08, ssid=SSID)]


def test_a_first_level_that_cannot_be_read_is_f_cd_fetch(guest):
    table(guest, bits=10, fmt=1, cds=OUTSIDE)

    assert guest.put(path=guest.substream) is not None
    assert guest.records() == [record(0x09, ssid=SSID, last=OUTSIDE + 8)]


@pytest.mark.parametrize(("dss", "kind"), [(SubstreamDefault.TERMINATE, 0x06), (SubstreamDefault.BYPASS, None)])
def test_the_ste_says_what_becomes_of_transactions_without_a_substream(guest, dss, kind):
    table(guest, dss=dss)

    assert guest.lands(OTHER | 0x560, path=guest.substream)
    if kind is None:
        assert guest.lands(PAGE + 0x20, PAGE + 0x20)
        assert guest.lands(PAGE | 0x560, path=guest.path(0))
    else:
        assert guest.refused([record(kind)])


def test_substream_0_is_disabled_where_it_is_used_by_those_without_one(guest):
    assert guest.put(path=guest.path(0)) is not None

    assert guest.records() == [record(0x06)]


@pytest.mark.parametrize("bits", [6, 0])
def test_a_substream_beyond_the_table_is_c_bad_substreamid(guest, bits):
    table(guest, bits=bits)

    assert guest.put(path=guest.substream) is not None
    assert guest.records() == [record(0x08, ssid=SSID)]


def test_a_substream_of_a_bypassing_stream_is_c_bad_substreamid(guest):
    guest.ste(1 | 4 << 1)

    assert guest.put(path=guest.substream) is not None
    assert guest.records() == [record(0x08, ssid=SSID)]


def test_a_table_of_more_cds_than_there_are_substreams_is_c_bad_ste(guest):
    table(guest, bits=11)

    assert guest.refused([record(0x04)])


def test_a_reserved_format_is_linear_and_a_reserved_default_terminates(guest):
    table(guest, fmt=3, dss=3)

    assert guest.lands(OTHER | 0x560, path=guest.substream)
    assert guest.refused([record(0x06)])


def test_faults_of_a_substream_name_it(guest):
    guest.map(0, root=OTHER_TTB)

    assert guest.put(path=guest.substream) is not None
    assert guest.records() == [record(0x10, 0x20000000000, IOVA, ssid=SSID)]


def test_a_cd_is_invalidated_by_its_substream(guest):
    assert guest.lands(OTHER | 0x560, path=guest.substream)
    guest.cd(0, place=CDS + SSID * 64)
    guest.issue(cfgi(Opcode.CFGI_CD, SID, ssid=SSID + 1), cfgi(Opcode.CFGI_CD, SID))
    assert guest.lands(OTHER | 0x560, path=guest.substream)

    guest.issue(cfgi(Opcode.CFGI_CD, SID, ssid=SSID))

    assert guest.put(path=guest.substream) is not None
    assert guest.records() == [record(0x0A, ssid=SSID)]


def test_without_substreamids_there_is_none(started):
    assert started.put(path=started.path(1)) is not None

    assert started.records() == [record(0x08, ssid=1)]
