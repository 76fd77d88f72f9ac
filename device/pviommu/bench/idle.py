"""The cost of a turn of the loop without anything to do, with few endpoints and with many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter_ns

from ..counters import Counters
from ..host.pacing import Pace
from ..host.server import Server
from ..inputs import LiveInputs
from ..pci.function import Environment
from ..topology import EndpointSection, Topology
from .bars import Bar, Judgement, shown
from .cores import build_machine
from .samples import Case, Effort, measure

__all__ = ["COUNTS", "judge_idle", "measure_idle"]

COUNTS = (1, 256)
"""Endpoints of the machines that are compared."""
_EFFORT = Effort(repeat=11, sample_ns=5_000_000)


class _Polling(Pace):
    """Polls for ever, as if somebody might begin to wait at any time."""

    def left_ns(self, now_ns: int) -> int:
        return 1


@contextmanager
def _server(core: str, endpoints: int) -> Iterator[Server]:
    """The server of a machine that nobody is connected to."""
    inputs = LiveInputs()
    entries = tuple(EndpointSection(f"e{n}", "template", n + 1) for n in range(endpoints))
    machine = build_machine(Topology(endpoint=entries), Environment(inputs, Counters()), core)
    server = Server(machine, {}, inputs, _Polling())
    try:
        yield server
    finally:
        server.close()
        machine.close()


def _case(server: Server, endpoints: int) -> Case:
    def turns(count: int) -> int:
        turn = server.turn
        begun = perf_counter_ns()
        for _ in range(count):
            turn(look_at_sockets=False)
        return perf_counter_ns() - begun

    return Case(str(endpoints), turns)


def measure_idle(core: str) -> dict[int, float]:
    """Nanoseconds of an idle turn by number of endpoints: the smallest of several samples, which was disturbed
    least."""
    with ExitStack() as stack:
        cases = [_case(stack.enter_context(_server(core, count)), count) for count in COUNTS]
        return {int(one.name): one.figure.least for one in measure(cases, _EFFORT)}


def judge_idle(idle: dict[int, float]) -> Judgement:
    """Judge whether endpoints that have nothing to do cost nothing."""
    few, many = (idle[count] for count in COUNTS)
    note = f"{shown(few / 1e3)} and {shown(many / 1e3)} us"
    return Bar(f"idle turn, {COUNTS[1]} endpoints beside {COUNTS[0]}", 1.25, "x").judge(many / few, note)
