"""A machine with an SMMU beside the PV-IOMMU: engines behind each, the loop's turns, resets and snapshots."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pviommu import machine, snapshot
from pviommu.control.answers import Answers, Served
from pviommu.counters import Counters
from pviommu.guest.dma_test import DescriptorRing
from pviommu.guest.local import LocalFunction
from pviommu.guest.memory import GuestRam
from pviommu.guest.smmuv3 import SmmuV3
from pviommu.host.work import Work
from pviommu.inputs import LiveInputs
from pviommu.interfaces.pv.ring_core import DeviceCore
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.snapshot import SnapshotError
from pviommu.topology import EndpointSection, SmmuSection, Topology
from pviommu_abi import dma_test
from pviommu_abi.dma_test import DescriptorStatus, DmaOp
from smmuv3.commands import Opcode, cfgi, resume
from smmuv3.registers import REGISTER_BAR
from vfio_user import DmaMapping

TOPOLOGY = Topology(
    endpoint=(
        EndpointSection("dma0", "dma-test", 1),
        EndpointSection("dma1", "dma-test", 2, smmu="smmu0", stream_id=8),
    ),
    smmu=(SmmuSection("smmu0", strict=True),),
)
SIZE = 0x80_0000
TABLE, COMMANDS, EVENTS, CDS, TTB, PAGE = (0x10_0000 * each for each in range(1, 7))
SID, IOVA = 8, 0x12_3456_7000
CD0, LEAF = 0x0007E205C0003510, 0xF47


class Vm:
    """The machine, its memory, and the guest's drivers."""

    def __init__(self, topology: Topology = TOPOLOGY, core: DeviceCore | None = None) -> None:
        self.machine = Machine.build(topology, Environment(LiveInputs(), Counters()), core)
        self.memory = GuestRam(SIZE)
        for function in self.machine.functions():
            function.dma_map(DmaMapping(0, SIZE, 0, True, True, os.dup(self.memory.fd)))
        self.turn = Work(self.machine).step
        self.smmu = self.machine.smmus["smmu0"]
        self.driver = SmmuV3(self, self.turn, commands=COMMANDS, events=EVENTS, cmdq_bits=8, evtq_bits=7)
        self.engines = {
            name: DescriptorRing(LocalFunction(endpoint, dma_test.REGISTER))
            for name, endpoint in self.machine.endpoints.items()
        }

    def close(self) -> None:
        self.machine.close()
        self.memory.close()

    def read(self, offset: int, count: int) -> bytes:
        return self.smmu.region_read(REGISTER_BAR, offset, count)

    def write(self, offset: int, data: bytes) -> None:
        self.smmu.region_write(REGISTER_BAR, offset, data)

    def load(self, address: int, count: int) -> bytes:
        return self.memory.bytes[address : address + count]

    def store(self, address: int, data: bytes) -> None:
        self.memory.bytes[address : address + len(data)] = data

    def words(self, address: int, *words: int) -> None:
        self.store(address, b"".join(word.to_bytes(8, "little") for word in words))

    def map(self) -> None:
        """Tables of stage 1 in which IOVA is PAGE, a CD and an STE."""
        self.words(TABLE + 64 * SID, CDS | 0xB, 0xD6)
        self.words(CDS, CD0, TTB, 0, 0xF404FF44)
        for level in range(4):
            at = TTB + level * 0x1000 + (IOVA >> 39 - 9 * level & 511) * 8
            self.words(at, TTB + (level + 1) * 0x1000 | 3 if level < 3 else PAGE | LEAF)

    def fill(self, name: str, address: int, length: int = 64) -> DescriptorStatus:
        """Let an engine fill memory; what came of it."""
        engine = self.engines[name]
        place = engine.put(DmaOp.FILL, length, dst=address, pattern=0x5A5A5A5A5A5A5A5A)
        engine.start()
        for _ in range(1000):
            if engine.is_done(place):
                return DescriptorStatus(engine.descriptor(place).status)
            self.turn()
        raise AssertionError("the engine does not come to an end")


@pytest.fixture
def vm() -> Iterator[Vm]:
    made = Vm()
    for engine in made.engines.values():
        engine.turn_on()
    yield made
    made.close()


def test_the_machine_has_an_smmu_and_an_engine_behind_each_iommu(vm):
    assert [function.name for function in vm.machine.functions()] == ["iommu", "smmu0", "dma0", "dma1"]
    assert dict(vm.machine.iommu.engine.endpoints()) == {1: 0}
    assert vm.smmu.streams == {2: SID}


def test_an_engine_behind_the_smmu_goes_through_the_guests_tables_and_the_other_does_not(vm):
    assert vm.fill("dma1", PAGE) is DescriptorStatus.DONE
    vm.map()
    vm.driver.reset(TABLE, 4)
    vm.store(PAGE, bytes(64))

    assert vm.fill("dma1", IOVA) is DescriptorStatus.DONE
    assert vm.load(PAGE, 64) == b"\x5a" * 64
    assert vm.fill("dma0", PAGE + 0x1000) is DescriptorStatus.DONE
    assert vm.fill("dma1", PAGE) is DescriptorStatus.FAULT

    [event], _ = vm.driver.on_eventq()
    assert (event.type, event.sid, event.address) == (0x10, SID, PAGE)


def test_more_commands_than_a_turn_takes_are_carried_out_in_several(vm):
    vm.map()
    vm.driver.reset(TABLE, 4)
    vm.driver.issue(*[cfgi(Opcode.CFGI_STE, SID)] * 200)
    assert vm.smmu.is_pressed()

    vm.driver.sync()

    assert not vm.smmu.is_pressed()
    assert not vm.turn()


def test_a_reset_of_the_smmu_blocks_what_was_behind_it_until_that_is_reset(vm):
    vm.map()
    vm.driver.reset(TABLE, 4)
    vm.smmu.reset()
    assert vm.fill("dma1", PAGE) is DescriptorStatus.FAULT

    vm.machine.endpoints["dma1"].reset()
    vm.engines["dma1"].producer = 0
    vm.engines["dma1"].turn_on()

    assert vm.fill("dma1", PAGE) is DescriptorStatus.DONE


def test_an_engine_waits_for_a_page_that_is_mapped_while_its_request_is_stalled():
    vm = Vm(Topology(TOPOLOGY.iommu, TOPOLOGY.endpoint, (SmmuSection("smmu0", stalls=8),)))
    try:
        vm.engines["dma1"].turn_on()
        vm.map()
        vm.words(CDS, CD0 | 1 << 44, TTB)
        leaf = TTB + 3 * 0x1000 + (IOVA >> 12 & 511) * 8
        vm.words(leaf, 0)
        vm.driver.reset(TABLE, 4)
        engine = vm.engines["dma1"]
        place = engine.put(DmaOp.FILL, 64, dst=IOVA, pattern=0x5A5A5A5A5A5A5A5A)
        engine.start()
        for _ in range(20):
            vm.turn()
        [event], _ = vm.driver.on_eventq()
        assert (event.type, event.sid, event.address) == (0x10, SID, IOVA)
        assert not engine.is_done(place)

        vm.words(leaf, PAGE | LEAF)
        vm.driver.issue(resume(SID, event.stag, retry=True))
        vm.driver.sync()
        for _ in range(20):
            vm.turn()

        assert DescriptorStatus(engine.descriptor(place).status) is DescriptorStatus.DONE
        assert vm.load(PAGE, 64) == b"\x5a" * 64
    finally:
        vm.close()


def test_tables_are_updated_with_the_native_core_only():
    topology = Topology(TOPOLOGY.iommu, TOPOLOGY.endpoint, (SmmuSection("smmu0", httu="dirty"),))
    with pytest.raises(ValueError, match="httu 2: only the native core can update tables that the guest writes to"):
        machine.Machine.build(topology, Environment(LiveInputs(), Counters()))


def finished(steps):
    """What a generator returns in the end."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


def test_the_control_socket_lists_the_function_and_the_endpoints_of_the_pv_iommu(vm):
    faults = vm.machine.iommu.keep_history(None)
    answers = Answers(Served(vm.machine, faults, lambda: None, kinds=TOPOLOGY.kinds()))

    assert [each["name"] for each in answers.do_endpoints()["endpoints"]] == ["dma0"]
    functions = finished(answers.begin("status", {}))["functions"]
    assert [(each["name"], each["kind"]) for each in functions[:2]] == [("iommu", "iommu"), ("smmu0", "smmuv3")]


def test_a_snapshot_has_the_smmu(vm):
    vm.map()
    vm.driver.reset(TABLE, 4)
    assert vm.fill("dma1", IOVA) is DescriptorStatus.DONE
    taken = snapshot.take(vm.machine)
    other = Vm()
    try:
        other.store(0, vm.load(0, SIZE))
        snapshot.restore(other.machine, taken)
        other.store(PAGE, bytes(64))
        other.engines["dma1"].producer = vm.engines["dma1"].producer

        assert other.fill("dma1", IOVA) is DescriptorStatus.DONE
        assert other.load(PAGE, 64) == b"\x5a" * 64
        assert other.driver.get("CR0") == 0xD
    finally:
        other.close()


def test_a_snapshot_of_another_smmu_is_refused(vm):
    other = Vm(Topology(TOPOLOGY.iommu, TOPOLOGY.endpoint, (SmmuSection("smmu0", stage2=True),)))
    try:
        with pytest.raises(SnapshotError, match=r"it is of another machine: smmus\.smmu0\.settings\.stage2 was False"):
            snapshot.restore(other.machine, snapshot.take(vm.machine))
    finally:
        other.close()


def test_a_machine_that_cannot_be_built_leaves_nothing_open():
    before = len(os.listdir("/proc/self/fd"))

    class Broken(SmmuSection, frozen=True):
        def config(self):
            raise ValueError("no such SMMU")

    with pytest.raises(ValueError, match="no such SMMU"):
        Machine.build(Topology(smmu=(Broken("smmu0"),)), Environment(LiveInputs(), Counters()))

    assert len(os.listdir("/proc/self/fd")) == before
