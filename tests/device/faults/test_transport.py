"""What rules make of sockets and messages, and what a client sees of it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pviommu.faults.holds import Hold
from pviommu.scenarios.stage import RAM_PAGES, PlayedClient, Stage, StuckError
from pviommu_abi.registers import REGISTER, SHARED_BAR
from vfio_user import ProtocolError, RemoteError

from .conftest import scenario

MakeStage = Callable[..., Stage]
MAGIC = REGISTER["MAGIC"].offset


@pytest.fixture
def make_stage() -> Iterator[MakeStage]:
    with contextlib.ExitStack() as stack:
        yield lambda *rules: stack.enter_context(Stage(scenario(*rules)))


def connected(stage: Stage, name: str = "iommu") -> PlayedClient:
    client = stage.client(name)
    try:
        client.negotiate()
    except BaseException:
        client.close()
        raise
    return client


def magic(client: PlayedClient) -> bytes:
    return client.region_read(0, MAGIC, 4)


def fired(stage: Stage) -> list[int]:
    return [rule.fired for rule in stage.faults.verdict().rules]


def test_a_message_is_late_and_keeps_only_its_own_client_waiting(make_stage: MakeStage) -> None:
    rule = {"on": "message.region_read.pre", "where": {"offset": MAGIC, "function": "iommu"}}
    stage = make_stage({**rule, "schedule": {"nth": 1}, "do": {"delay": "50ms"}})
    with connected(stage) as client, connected(stage, "dma0") as other:
        before = stage.clock.time_ns
        header = client._post(9, b"\0" * 8 + b"\0\0\0\0\4\0\0\0", ())
        assert other.region_read(0, 0, 4) != bytes(4)
        assert stage.clock.time_ns - before < 50_000_000
        sleeps = stage.counters.sleeps
        assert client._await(header).payload[16:] == b"PVIM"
        assert stage.clock.time_ns - before >= 50_000_000
        assert stage.counters.sleeps > sleeps  # the loop sleeps meanwhile
        assert magic(client) == b"PVIM"


def test_a_message_is_refused_with_its_errno(make_stage: MakeStage) -> None:
    stage = make_stage({"on": "message.dma_map.pre", "where": {"gpa": "0x100000.."}, "do": {"fail": "ENOMEM"}})
    with connected(stage) as client:
        client.dma_map(0, 0x1000, stage.ram.fd)
        with pytest.raises(RemoteError) as caught:
            client.dma_map(0x100000, 0x1000, stage.ram.fd)
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize("side", ["pre", "post"])
def test_a_message_gets_any_error(make_stage: MakeStage, side: str) -> None:
    stage = make_stage({"on": f"message.device_get_info.{side}", "do": {"status": 77}})
    with connected(stage) as client, pytest.raises(RemoteError) as caught:
        client.device_info()
    assert caught.value.errno == 77


def test_a_reply_is_lost_and_the_session_goes_on(make_stage: MakeStage) -> None:
    stage = make_stage({"on": "message.device_get_info.apply", "schedule": {"nth": 1}, "do": {"drop": True}})
    with connected(stage) as client:
        with pytest.raises(StuckError):
            client.device_info()
        assert magic(client) == b"PVIM"


def test_a_write_that_lies_does_nothing(make_stage: MakeStage) -> None:
    stage = make_stage({"on": "message.region_write.apply", "where": {"region": 7}, "do": {"lie": True}})
    with connected(stage) as client:
        client.config_write(4, 2, 6)
        assert client.config_read(4, 2) == 0


def test_a_region_comes_without_its_descriptor(make_stage: MakeStage) -> None:
    stage = make_stage({"on": "message.device_get_region_info.post", "do": {"withhold": True}})
    with connected(stage) as client:
        assert client.map_region(SHARED_BAR) == []
    assert fired(stage) == [1]


@pytest.mark.parametrize("on", ["message.dma_map.pre", "socket.receive.post"])
def test_guest_memory_comes_without_its_descriptor(make_stage: MakeStage, on: str) -> None:
    stage = make_stage({"on": on, "do": {"withhold": True}})
    with connected(stage) as client:
        client.dma_map(0, RAM_PAGES << 12, stage.ram.fd)
        assert stage.machine.iommu.memory.ram_ranges() == []
    assert fired(stage) == [1]


def test_guest_memory_that_is_late_keeps_its_descriptor(make_stage: MakeStage) -> None:
    stage = make_stage({"on": "message.dma_map.pre", "do": {"delay": "5ms"}})
    with connected(stage) as client:
        client.dma_map(0, RAM_PAGES << 12, stage.ram.fd)
        assert stage.machine.iommu.memory.ram_ranges() == [(0, (RAM_PAGES << 12) - 1)]


def test_a_client_that_goes_while_its_message_hangs_is_let_go(make_stage: MakeStage) -> None:
    stage = make_stage({"on": "message.dma_map.pre", "do": {"hang": True}})
    client = connected(stage)
    client._post(2, b"\x20\0\0\0\3\0\0\0" + bytes(16) + b"\0\x10\0\0\0\0\0\0", (stage.ram.fd,))
    for _ in range(3):
        stage.turn()
    client.close()
    for _ in range(3):
        stage.turn()
    with connected(stage) as again:
        assert magic(again) == b"PVIM"


@pytest.mark.parametrize(
    ("side", "do"),
    [("pre", {"corrupt": 0, "xor": 4}), ("pre", {"truncate": 8}), ("post", {"corrupt": 16, "xor": 1})],
)
def test_a_message_or_its_reply_is_changed(make_stage: MakeStage, side: str, do: dict[str, Any]) -> None:
    stage = make_stage({"on": f"message.region_read.{side}", "do": do})
    with connected(stage) as client, contextlib.suppress(RemoteError, ProtocolError):
        assert magic(client) != b"PVIM"
    assert fired(stage) == [1]


def test_a_client_is_not_accepted_for_want_of_descriptors(make_stage: MakeStage) -> None:
    stage = make_stage({"on": "socket.accept.pre", "schedule": {"nth": 1}, "do": {"fail": "EMFILE"}})
    with pytest.raises(ConnectionError):
        connected(stage)
    with connected(stage) as again:
        assert magic(again) == b"PVIM"


def test_bytes_come_and_go_one_by_one(make_stage: MakeStage) -> None:
    rules = ({"on": "socket.receive.pre", "do": {"slice": 1}}, {"on": "socket.send.pre", "do": {"slice": 3}})
    stage = make_stage(*rules)
    with connected(stage) as client:
        client.dma_map(0, RAM_PAGES << 12, stage.ram.fd)
        assert magic(client) == b"PVIM"
    assert min(fired(stage)) > 20
    assert all(rule.nature == "conforming" for rule in stage.faults.verdict().rules)


@pytest.mark.parametrize("probe", ["socket.receive", "socket.send"])
def test_a_socket_is_slow_and_the_loop_sleeps(make_stage: MakeStage, probe: str) -> None:
    stage = make_stage({"on": f"{probe}.pre", "where": {"function": "iommu"}, "do": {"delay": "30ms"}})
    before, turns = stage.clock.time_ns, stage.counters.sleeps
    with connected(stage) as client, connected(stage, "dma0") as other:
        assert magic(client) == b"PVIM"
        assert stage.clock.time_ns - before >= 60_000_000
        assert stage.counters.sleeps - turns < 60
        assert other.region_read(0, 0, 4)


@pytest.mark.parametrize(
    ("probe", "side", "do"),
    [
        ("socket.receive", "pre", {"fail": "ECONNRESET"}),
        ("socket.send", "pre", {"fail": "EPIPE"}),
    ],
)
def test_the_client_seems_to_be_gone(make_stage: MakeStage, probe: str, side: str, do: dict[str, Any]) -> None:
    stage = make_stage({"on": f"{probe}.{side}", "schedule": {"nth": 2}, "do": do})
    with connected(stage) as client, pytest.raises(ConnectionError):
        magic(client)


@pytest.mark.parametrize(
    ("place", "do"),
    [
        ("socket.receive.post", {"truncate": 4}),
        ("socket.receive.post", {"corrupt": 2, "value": 99}),
        ("socket.send.apply", {"drop": True}),
        ("socket.send.apply", {"truncate": 4}),
        ("socket.send.pre", {"corrupt": 0, "xor": 1}),
        ("socket.send.pre", {"hang": True}),
        ("socket.receive.pre", {"hang": True}),
    ],
)
def test_a_damaged_stream_harms_its_client_and_no_other(make_stage: MakeStage, place: str, do: dict[str, Any]) -> None:
    stage = make_stage({"on": place, "where": {"function": "iommu"}, "schedule": {"after": 1}, "do": do})
    with connected(stage, "dma0") as other:
        with pytest.raises((StuckError, OSError, ProtocolError, RemoteError)), connected(stage) as client:
            magic(client)
        assert other.region_read(0, 0, 4)


def test_a_client_is_hung_up_on(make_stage: MakeStage) -> None:
    stage = make_stage({"on": "message.region_read.post", "do": {"disconnect": True}})
    with connected(stage) as client:
        assert magic(client) == b"PVIM"
        with pytest.raises(ConnectionError):
            magic(client)


@pytest.mark.parametrize(("on", "nth"), [("message.region_read.pre", 2), ("socket.send.pre", 3)])
def test_a_reset_of_the_iommu_does_not_lose_a_client_that_is_held(make_stage: MakeStage, on: str, nth: int) -> None:
    stage = make_stage({"on": on, "where": {"function": "dma0"}, "schedule": {"nth": nth}, "do": {"suspend": "it"}})
    with connected(stage, "dma0") as client:
        client.region_read(0, 0, 4)
        header = client._post(9, b"\0" * 8 + b"\0\0\0\0\4\0\0\0", ())
        for _ in range(3):
            stage.turn()
        stage.machine.iommu.reset()
        assert stage.faults.holds.tags() == ["it"]
        assert stage.faults.holds.resume("it") == 1
        assert len(client._await(header).payload) == 20


@pytest.mark.parametrize(
    ("on", "after"), [("message.region_read.pre", 0), ("socket.receive.pre", 8), ("socket.send.pre", 8)]
)
@pytest.mark.parametrize("do", [{"hang": True}, {"suspend": "it"}, {"wait": "it"}, {"delay": "3600s"}])
def test_nothing_is_kept_of_clients_that_have_gone(
    make_stage: MakeStage, on: str, after: int, do: dict[str, Any]
) -> None:
    stage = make_stage({"on": on, "where": {"function": "dma0"}, "schedule": {"after": after}, "do": do})
    holds = stage.faults.holds

    def held() -> list[Hold]:
        return [*holds._suspended, *holds._awaiting, *holds._hung, *holds._delayed]

    for _ in range(3):
        with contextlib.suppress(StuckError), connected(stage, "dma0") as client:
            for _ in range(8):
                client._post(9, b"\0" * 8 + b"\0\0\0\0\4\0\0\0", ())
                stage.turn()
            assert len(held()) == 1
        for _ in range(3):
            stage.turn()
        assert held() == []
    assert holds.tags() == []
    problems = {
        "suspend": ["still suspended at the end: it; nothing resumed them"],
        "wait": ["still waiting at the end for it; nothing was suspended under that"],
    }
    assert list(stage.faults.verdict().problems) == problems.get(next(iter(do)), [])


def test_who_waits_for_a_tag_that_is_there_already_does_not_wait(make_stage: MakeStage) -> None:
    stage = make_stage(
        {"on": "message.region_read.pre", "where": {"function": "dma0"}, "do": {"suspend": "it"}},
        {"on": "socket.receive.pre", "where": {"function": "iommu"}, "do": {"wait": "it"}},
        {"on": "socket.send.pre", "where": {"function": "iommu"}, "do": {"wait": "it"}},
    )
    with connected(stage, "dma0") as other:
        other._post(9, b"\0" * 8 + b"\0\0\0\0\4\0\0\0", ())
        for _ in range(3):
            stage.turn()
        with connected(stage) as client:
            assert magic(client) == b"PVIM"
