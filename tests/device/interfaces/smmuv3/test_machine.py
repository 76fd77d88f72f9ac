"""A machine with an SMMU beside the PV-IOMMU: engines behind each, the loop's turns, resets and snapshots."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from pviommu import machine, snapshot
from pviommu.control.answers import Answers, Served
from pviommu.counters import Counters
from pviommu.guest.dma_test import DescriptorRing
from pviommu.guest.local import LocalFunction
from pviommu.guest.memory import GuestRam
from pviommu.guest.smmuv3 import CommandFailedError, SmmuV3
from pviommu.host.work import Work
from pviommu.inputs import LiveInputs
from pviommu.interfaces.pv.ring_core import DeviceCore
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.snapshot import SnapshotError
from pviommu.topology import EndpointSection, SmmuSection, Topology
from pviommu_abi import dma_test
from pviommu_abi.dma_test import DescriptorFlags, DescriptorStatus, DmaOp
from smmuv3.commands import Opcode, PriResponse, atc_inv, cfgi, pri_resp, resume, sync, tlbi
from smmuv3.registers import REGISTER_BAR, CommandError
from smmuv3.structures import SubstreamDefault
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
REQUESTS = 0x70_0000
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
        pri = {"requests": REQUESTS, "priq_bits": topology.smmu[0].priq_bits}
        self.driver = SmmuV3(self, self.turn, commands=COMMANDS, events=EVENTS, cmdq_bits=8, evtq_bits=7, **pri)
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
        self.words(TABLE + 64 * SID, CDS | 0xB, 0xD6 | self.smmu.settings.ats << 28)
        self.words(CDS, CD0, TTB, 0, 0xF404FF44)
        for level in range(4):
            at = TTB + level * 0x1000 + (IOVA >> 39 - 9 * level & 511) * 8
            self.words(at, TTB + (level + 1) * 0x1000 | 3 if level < 3 else PAGE | LEAF)

    def fill(self, name: str, address: int, length: int = 64, **fields: int) -> DescriptorStatus:
        """Let an engine fill memory; what came of it."""
        engine = self.engines[name]
        place = engine.put(DmaOp.FILL, length, dst=address, pattern=0x5A5A5A5A5A5A5A5A, **fields)
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


class Host:
    """A loop's timers, which are due when a test says so."""

    def __init__(self) -> None:
        self.due: list[tuple[int, Callable[[], None]]] = []

    def at(self, time_ns: int, callback: Callable[[], None]) -> Host:
        self.due.append((time_ns, callback))
        return self

    def cancel(self) -> None:
        self.due.clear()


@pytest.fixture
def ats() -> Iterator[Vm]:
    """One whose engine behind the SMMU has ATS and page requests, which the guest has turned on."""
    behind = EndpointSection("dma1", "dma-test", 2, smmu="smmu0", stream_id=8, ats=True, pri=True)
    smmu = SmmuSection("smmu0", strict=True, ats=True, priq_bits=4)
    made = Vm(Topology(TOPOLOGY.iommu, (TOPOLOGY.endpoint[0], behind), (smmu,)))
    made.engines["dma1"].turn_on()
    made.function = made.engines["dma1"].function
    made.ats, made.pri = (made.function.extended_capability(each) for each in (0x0F, 0x13))
    made.map()
    made.driver.reset(TABLE, 4)
    made.function.write_config(made.ats + 6, 2, 0x8000)
    yield made
    made.close()


def asking(vm: Vm) -> DescriptorRing:
    """The engine has page requests turned on, and its page is not mapped; it asks for it."""
    vm.function.write_config(vm.pri + 12, 4, 16)
    vm.function.write_config(vm.pri + 4, 2, 1)
    vm.words(TTB + 3 * 0x1000 + (IOVA >> 12 & 511) * 8, 0)
    engine = vm.engines["dma1"]
    engine.put(DmaOp.FILL, 64, dst=IOVA, pattern=0x5A5A5A5A5A5A5A5A)
    engine.start()
    for _ in range(20):
        vm.turn()
    return engine


def atc_of(vm: Vm) -> str:
    return vm.smmu.report()["streams"].partition(" ATC ")[2]


@pytest.mark.row("smmu", 37)
def test_an_engine_with_ats_keeps_what_it_is_told_until_ats_is_turned_off(ats):
    assert atc_of(ats) == "0"
    assert ats.fill("dma1", IOVA) is DescriptorStatus.DONE
    assert atc_of(ats) == "1"

    ats.function.write_config(ats.ats + 6, 2, 0)
    assert atc_of(ats) == "off"
    ats.function.write_config(ats.ats + 6, 2, 0x8000)

    assert atc_of(ats) == "0"


@pytest.mark.row("smmu", 37)
def test_a_reset_of_the_engine_turns_ats_off_and_empties_its_cache(ats):
    assert ats.fill("dma1", IOVA) is DescriptorStatus.DONE

    ats.machine.endpoints["dma1"].reset()

    assert atc_of(ats) == "off"
    assert ats.function.read_config(ats.ats + 6, 2) == 0
    ats.function.write_config(ats.ats + 6, 2, 0x8000)
    assert atc_of(ats) == "0"


@pytest.mark.row("smmu", 37)
def test_a_reset_of_the_smmu_empties_the_caches_behind_it(ats):
    assert ats.fill("dma1", IOVA) is DescriptorStatus.DONE
    assert atc_of(ats) == "1"

    ats.smmu.reset()

    assert atc_of(ats) == "0"


@pytest.mark.row("smmu", 38)
def test_and_waits_for_no_answer_to_a_page_request(ats):
    asking(ats)
    assert ats.smmu.report()["page_requests"] == 1

    ats.smmu.reset()

    assert ats.smmu.report()["page_requests"] == 0


@pytest.mark.row("smmu", 37)
def test_a_stale_entry_of_the_engine_is_reported_and_explained(ats):
    assert ats.fill("dma1", IOVA) is DescriptorStatus.DONE
    ats.words(TTB + 3 * 0x1000 + (IOVA >> 12 & 511) * 8, 0)
    ats.driver.issue(tlbi(Opcode.TLBI_NH_VA, IOVA, asid=7))
    ats.driver.sync()
    assert ats.smmu.explain(2, IOVA)["cached"] == [f"ATC: {IOVA:#x} leads to {PAGE:#x}"]

    assert ats.fill("dma1", IOVA) is DescriptorStatus.DONE

    assert [stale.what for stale in ats.smmu.stale] == ["ATC"]
    ats.driver.issue(atc_inv(SID, IOVA, 0))
    ats.driver.sync()
    assert ats.smmu.explain(2, IOVA)["cached"] == []
    assert ats.fill("dma1", IOVA) is DescriptorStatus.FAULT


@pytest.mark.row("smmu", 37)
def test_the_loop_ends_the_wait_for_an_atc_after_half_a_second(ats):
    host = Host()
    ats.smmu.on_served(host)
    ats.smmu.smmu.invalidations.complete = lambda *_: None
    before = ats.machine.inputs.now_ns()
    ats.driver.issue(atc_inv(SID), sync())
    while ats.turn():
        pass
    [(due, expire)] = host.due
    assert 500_000_000 <= due - before < 1_000_000_000
    assert ats.smmu.report()["invalidations"] == 1

    expire()

    with pytest.raises(CommandFailedError) as failed:
        ats.driver.drain()
    assert failed.value.error is CommandError.ATC_INV_SYNC
    ats.driver.on_gerror()
    ats.driver.drain()
    assert ats.smmu.report()["invalidations"] == 0


@pytest.mark.row("smmu", 38)
def test_an_engine_asks_for_a_page_and_its_dma_goes_on_when_that_is_answered(ats):
    engine = asking(ats)
    [asked], lost = ats.driver.on_priq()
    assert (asked.sid, asked.address, asked.writes, asked.is_last, lost) == (SID, IOVA, True, True, False)
    assert ats.smmu.report()["page_requests"] == 1
    assert not engine.is_done(0)

    ats.map()
    ats.driver.issue(pri_resp(SID, asked.group, PriResponse.SUCCESS))
    for _ in range(20):
        ats.turn()

    assert DescriptorStatus(engine.descriptor(0).status) is DescriptorStatus.DONE
    assert ats.load(PAGE, 64) == b"\x5a" * 64
    assert ats.driver.on_eventq() == ([], False)


@pytest.mark.row("smmu", 38)
def test_after_a_failure_the_engine_says_so_and_asks_no_more_until_that_is_cleared(ats):
    engine = asking(ats)
    [asked], _ = ats.driver.on_priq()
    ats.driver.issue(
        pri_resp(SID, asked.group + 1, PriResponse.SUCCESS), pri_resp(SID, asked.group, PriResponse.FAILURE)
    )
    for _ in range(20):
        ats.turn()
    assert DescriptorStatus(engine.descriptor(0).status) is DescriptorStatus.FAULT
    assert ats.function.read_config(ats.pri + 6, 2) == 3, "a failure, and a group that there was not"

    assert ats.fill("dma1", IOVA) is DescriptorStatus.FAULT
    assert ats.driver.on_priq() == ([], False)
    assert [event.type for event in ats.driver.on_eventq()[0]] == [0x10]

    ats.function.write_config(ats.pri + 6, 2, 3)
    assert ats.function.read_config(ats.pri + 6, 2) == 0
    with pytest.raises(AssertionError, match="does not come to an end"):
        ats.fill("dma1", IOVA)
    assert len(ats.driver.on_priq()[0]) == 1


@pytest.mark.row("smmu", 38)
def test_page_requests_that_are_turned_off_are_stopped_and_nothing_is_outstanding(ats):
    assert ats.function.read_config(ats.pri + 6, 2) == 0x100
    asking(ats)
    assert ats.function.read_config(ats.pri + 6, 2) == 0

    ats.function.write_config(ats.pri + 4, 2, 0)

    assert ats.function.read_config(ats.pri + 6, 2) == 0x100
    assert ats.smmu.report()["page_requests"] == 0


def test_a_snapshot_has_what_the_guest_has_turned_on_and_an_empty_cache(ats):
    ats.function.write_config(ats.pri + 4, 2, 1)
    assert ats.fill("dma1", IOVA) is DescriptorStatus.DONE
    taken = snapshot.take(ats.machine)

    snapshot.restore(ats.machine, taken)

    assert atc_of(ats) == "0"
    assert ats.function.read_config(ats.pri + 4, 2) == 1
    assert ats.driver.get("CR0") == 0x1F
    assert ats.fill("dma1", IOVA) is DescriptorStatus.DONE


PASID, OTHER_TTB, OTHER = 5, 0x48_0000, 0x65_0000
PASID_FLAG = int(DescriptorFlags.PASID)


@pytest.fixture
def pasids() -> Iterator[Vm]:
    """One whose engine behind the SMMU has PASIDs of 4 bits, turned on; PASID 5 leads from IOVA to OTHER."""
    behind = EndpointSection("dma1", "dma-test", 2, smmu="smmu0", stream_id=8, ats=True, pasid_bits=4)
    smmu = SmmuSection("smmu0", ats=True, ssid_bits=6)
    made = Vm(Topology(TOPOLOGY.iommu, (TOPOLOGY.endpoint[0], behind), (smmu,)))
    made.engines["dma1"].turn_on()
    made.function = made.engines["dma1"].function
    made.pasid = made.function.extended_capability(0x1B)
    made.map()
    made.words(CDS + 64 * PASID, CD0 & ~(0xFFFF << 48) | 8 << 48, OTHER_TTB, 0, 0xF404FF44)
    for level in range(4):
        at = OTHER_TTB + level * 0x1000 + (IOVA >> 39 - 9 * level & 511) * 8
        made.words(at, OTHER_TTB + (level + 1) * 0x1000 | 3 if level < 3 else OTHER | LEAF)
    substreams(made)
    made.driver.reset(TABLE, 4)
    made.function.write_config(made.pasid + 6, 2, 1)
    yield made
    made.close()


def substreams(vm: Vm, default: int = SubstreamDefault.SUBSTREAM_0, bits: int = 4) -> None:
    vm.words(TABLE + 64 * SID, CDS | 0xB | bits << 59, 0xD4 | default | 1 << 28)


@pytest.mark.row("smmu", 39)
def test_dma_with_a_pasid_goes_by_the_tables_of_its_context_descriptor(pasids):
    assert pasids.fill("dma1", IOVA, flags=PASID_FLAG, pasid=PASID) is DescriptorStatus.DONE
    assert pasids.load(OTHER, 64) == b"\x5a" * 64
    assert pasids.load(PAGE, 64) == bytes(64)

    assert pasids.fill("dma1", IOVA) is DescriptorStatus.DONE
    assert pasids.load(PAGE, 64) == b"\x5a" * 64


@pytest.mark.row("smmu", 39)
@pytest.mark.parametrize(
    ("default", "pasid", "event"),
    [
        (SubstreamDefault.SUBSTREAM_0, 0, 0x06),
        (SubstreamDefault.TERMINATE, None, 0x06),
        (SubstreamDefault.SUBSTREAM_0, 6, 0x0A),
        (SubstreamDefault.BYPASS, PASID, None),
        (SubstreamDefault.BYPASS, 0, None),
    ],
)
def test_what_has_no_context_descriptor_is_refused_and_told_by_its_substream(pasids, default, pasid, event):
    substreams(pasids, default)
    fields = {} if pasid is None else {"flags": PASID_FLAG, "pasid": pasid}

    status = pasids.fill("dma1", IOVA, **fields)

    assert status is (DescriptorStatus.DONE if event is None else DescriptorStatus.FAULT)
    told = [(each.type, each.ssid) for each in pasids.driver.on_eventq()[0]]
    assert told == ([] if event is None else [(event, pasid if event == 0x0A else None)])


@pytest.mark.row("smmu", 39)
def test_a_fault_of_a_pasid_names_it_to_the_guest(pasids):
    assert pasids.fill("dma1", IOVA + 0x1000, flags=PASID_FLAG, pasid=PASID) is DescriptorStatus.FAULT

    [event], _ = pasids.driver.on_eventq()
    assert (event.type, event.ssid, event.address) == (0x10, PASID, IOVA + 0x1000)


@pytest.mark.row("smmu", 39)
def test_a_pasid_is_explained_by_its_own_tables(pasids):
    assert pasids.smmu.explain(2, IOVA)["smmu"]["leads_to"] == PAGE
    assert pasids.smmu.explain(2, IOVA, PASID)["smmu"]["leads_to"] == OTHER
    assert pasids.smmu.explain(2, IOVA, 6)["cause"] == "c-bad-cd"


@pytest.mark.row("smmu", 39)
def test_pasids_must_be_turned_on_and_fit_the_functions_width(pasids):
    assert pasids.fill("dma1", IOVA, flags=PASID_FLAG, pasid=16) is DescriptorStatus.INVALID
    pasids.function.write_config(pasids.pasid + 6, 2, 0)

    assert pasids.fill("dma1", IOVA, flags=PASID_FLAG, pasid=PASID) is DescriptorStatus.INVALID
    assert pasids.fill("dma1", IOVA) is DescriptorStatus.DONE


@pytest.mark.row("smmu", 39)
def test_translations_that_the_engine_keeps_are_by_pasid(pasids):
    pasids.function.write_config(pasids.function.extended_capability(0x0F) + 6, 2, 0x8000)
    for fields in ({}, {"flags": PASID_FLAG, "pasid": PASID}):
        assert pasids.fill("dma1", IOVA, **fields) is DescriptorStatus.DONE
    assert atc_of(pasids) == "2"

    pasids.driver.issue(atc_inv(SID, IOVA, 0, ssid=PASID))
    pasids.driver.sync()

    assert atc_of(pasids) == "1"


@pytest.mark.row("smmu", 39)
def test_an_engine_behind_the_pv_iommu_has_no_pasids(pasids):
    pasids.engines["dma0"].turn_on()

    assert pasids.fill("dma0", PAGE, flags=PASID_FLAG, pasid=0) is DescriptorStatus.INVALID
    with pytest.raises(LookupError, match="no extended capability 0x1b"):
        pasids.engines["dma0"].function.extended_capability(0x1B)


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
