"""What all endpoints share: their capability, their part in resets, and whose memory they believe."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from pviommu.endpoints.template import Template
from pviommu_abi.registers import REGISTER, EndpointCapability
from vfio_user import DmaMapping, RequestError

PAGE = 4096


@pytest.fixture
def endpoint(guest: Any) -> Template:
    endpoint = guest.make(Template, "stamp", 1)
    guest.plug(endpoint)
    return endpoint


def reset_iommu(guest: Any) -> None:
    guest.iommu.region_write(0, REGISTER["RESET"].offset, (1).to_bytes(4, "little"))


def test_the_capability_names_stream_and_instance(endpoint: Template) -> None:
    config = endpoint.region_read(7, 0, 256)
    offset = config[0x34]
    while config[offset] != 0x09:
        offset = config[offset + 1]

    capability = EndpointCapability.unpack(config, offset)

    assert (capability.instance, capability.stream, capability.version) == (1, 1, 1)


def test_an_unknown_stream_is_refused(guest: Any) -> None:
    with pytest.raises(ValueError, match=r"stream 3: not one of \(1, 2\)"):
        guest.make(Template, "stamp", 3)


def test_after_a_reset_of_the_iommu_it_is_blocked_until_its_own_reset(guest: Any, endpoint: Template) -> None:
    reset_iommu(guest)
    assert guest.iommu.engine.is_blocked(1)

    endpoint.reset()

    assert not guest.iommu.engine.is_blocked(1)


def test_only_turning_bus_mastering_on_unblocks(guest: Any, endpoint: Template) -> None:
    reset_iommu(guest)

    guest.set_bus_master(endpoint, True)
    guest.set_bus_master(endpoint, False)
    assert guest.iommu.engine.is_blocked(1)

    guest.set_bus_master(endpoint, True)
    assert not guest.iommu.engine.is_blocked(1)


def test_a_client_with_other_memory_is_another_machine(guest: Any, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = guest.make(Template, "stamp", 1)
    other = os.memfd_create("other", os.MFD_CLOEXEC)
    os.ftruncate(other, PAGE)

    with pytest.raises(RequestError) as caught:
        endpoint.dma_map(DmaMapping(0, PAGE, 0, True, True, other))

    assert caught.value.errno == errno.EINVAL
    assert str(caught.value) == (
        "map [0x0, +0x1000): the client of another function of this machine has other memory there"
    )
    assert list(endpoint.memory) == []
    assert [record.getMessage().count("\n") for record in caplog.records if record.levelname == "ERROR"] == [0]
    endpoint.close()


def test_the_rule_holds_for_the_iommus_client_too(guest: Any) -> None:
    endpoint = guest.make(Template, "stamp", 1)
    size = sum(mapping.size for mapping in guest.iommu.memory)
    guest.iommu.dma_unmap_all()
    guest.give_memory(endpoint, 0, size)
    other = os.memfd_create("other", os.MFD_CLOEXEC)
    os.ftruncate(other, PAGE)

    with pytest.raises(RequestError, match="other memory"):
        guest.iommu.dma_map(DmaMapping(0, PAGE, 0, True, True, other))

    assert list(guest.iommu.memory) == []
    endpoint.close()


def test_another_offset_of_the_same_file_is_other_memory(guest: Any) -> None:
    endpoint = guest.make(Template, "stamp", 1)

    with pytest.raises(RequestError, match="other memory"):
        endpoint.dma_map(DmaMapping(0, PAGE, PAGE, True, True, os.dup(guest.ram)))

    guest.give_memory(endpoint, PAGE, PAGE)
    assert endpoint.memory.ram_ranges() == [(PAGE, 2 * PAGE - 1)]
    endpoint.close()
