import logging

import pytest

from pviommu.counters import Counters
from pviommu.dma.fault import Fault, FaultKind
from pviommu.engine import Access, Engine
from pviommu.inputs import LiveInputs
from pviommu.interfaces.pv.bindings import Bindings
from pviommu.interfaces.pv.config import NO_STREAM
from pviommu.interfaces.pv.contexts import Contexts, DefaultPolicy
from pviommu.interfaces.pv.reporting import VECTOR_EVENTS, Reporter
from pviommu.pci.function import Environment
from pviommu_abi.shared import SBDF_UNBOUND, EventReason

STREAM = 1
SBDF = 0x28
TIME = 77


class Inputs(LiveInputs):
    def now_ns(self):
        return TIME


class Events:
    """An event ring that asks for an interrupt if ``wanted`` and loses what is put if ``full``."""

    def __init__(self):
        self.put_so_far = []
        self.sequence = 5
        self.lost = 0
        self.wanted = True
        self.full = False

    def put(self, event):
        self.lost += self.full
        self.put_so_far.append(event)
        return self.wanted


class Source:
    name = "iommu"

    def __init__(self):
        self.vectors = []

    def interrupt(self, vector):
        self.vectors.append(vector)


class Reports:
    def __init__(self):
        engine = Engine()
        contexts = Contexts(engine, 255, DefaultPolicy.IDENTITY)
        contexts.add_endpoint(STREAM)
        contexts.alloc()
        contexts.attach(STREAM, 1)
        self.counters = Counters()
        self.events = Events()
        self.source = Source()
        bindings = Bindings(frozenset([STREAM]), {STREAM: SBDF})
        environment = Environment(Inputs(), self.counters)
        self.reporter = Reporter(contexts, bindings, self.events, environment, self.source)


@pytest.fixture
def reports():
    return Reports()


@pytest.mark.parametrize("kind", [kind for kind in FaultKind if kind is not FaultKind.NO_BUS_MASTER])
def test_every_fault_has_a_reason(reports, kind):
    reports.reporter.fault(Fault(kind, STREAM, 0x1000, Access.READ, 8))
    (event,) = reports.events.put_so_far
    assert event.reason.name == kind.name


def test_a_fault_says_who_and_where_and_when(reports, caplog):
    with caplog.at_level(logging.INFO):
        reports.reporter.fault(Fault(FaultKind.PERMISSION, STREAM, 0x1000, Access.WRITE, 8))
    (event,) = reports.events.put_so_far
    assert (event.sequence, event.time_ns, event.reason) == (5, TIME, EventReason.PERMISSION)
    assert (event.stream, event.sbdf, event.ctx_no) == (STREAM, SBDF, 1)
    assert (event.iova, event.length, event.access) == (0x1000, 8, int(Access.WRITE))
    (record,) = caplog.records
    assert (record.event, record.fields["iova"], record.fields["context"]) == ("fault", 0x1000, 1)
    assert (reports.counters.faults, reports.counters.events, reports.counters.events_lost) == (1, 1, 0)
    assert reports.source.vectors == [VECTOR_EVENTS]


def test_an_event_that_concerns_no_endpoint_names_none(reports):
    reports.reporter.event(reason=EventReason.RING_BROKEN, slot=3)
    (event,) = reports.events.put_so_far
    assert (event.stream, event.sbdf, event.slot) == (NO_STREAM, SBDF_UNBOUND, 3)
    assert reports.counters.faults == 0


def test_the_guest_is_interrupted_only_when_it_wants_to_be(reports):
    reports.events.wanted = False
    reports.reporter.event(reason=EventReason.RING_BROKEN)
    assert reports.source.vectors == []


def test_what_the_ring_loses_is_counted(reports):
    reports.events.full = True
    reports.reporter.event(reason=EventReason.RING_BROKEN)
    assert (reports.counters.events, reports.counters.events_lost) == (1, 1)
