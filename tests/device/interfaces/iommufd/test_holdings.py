"""What a system has of programs: what there is not has no key, so that what is new is seen as such."""

from __future__ import annotations

from pviommu.interfaces.iommufd import System
from pviommu.interfaces.iommufd import vfio_structures as v
from pviommu.interfaces.iommufd.holdings import changes, holdings

from .conftest import PAGE, Handle, Program
from .test_type1 import Client


def keys_of(program: Program) -> set[str]:
    return set(holdings(program.system, [program.find_file(fd) for fd in program.descriptors()]))


def test_of_a_device(program: Program, dma0: Handle) -> None:
    ioas, before = program.ioas(), keys_of(program)
    table = dma0.table(ioas)
    assert keys_of(program) - before == {f"page table {table} of /dev/iommu 0", "page table 1"}
    before = keys_of(program)
    dma0.attach(table)
    assert keys_of(program) - before == {"page table of dma0"}
    dma0.detach()
    assert keys_of(program) == before
    dma0.close()
    assert {"owner of dma0", "bound files of the group of dma0"} <= before - keys_of(program)


def test_of_a_container(system: System) -> None:
    client = Client(system, version=None)
    files = [client.program.find_file(client.container)]

    def keys() -> set[str]:
        return set(holdings(system, files))

    before = keys()
    client.enter(client.open_group(0))
    assert f"{system.devices['dma0'].group} in container 0" in keys() - before
    assert "type1 of container 0" not in keys()
    client.set_iommu(2)
    first = holdings(system, files)
    client.map(0, PAGE)
    assert any(each.startswith("type1 of container 0") for each in changes(first, holdings(system, files)))
    first = holdings(system, files)
    client.program.call(client.container, v.DirtyPages, flags=v.DirtyPagesFlag.START)
    assert [each.partition(":")[0] for each in changes(first, holdings(system, files))] == ["type1 of container 0"]
