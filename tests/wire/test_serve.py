import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from pviommu.bench.wire_guest import processor_time_ns
from pviommu.host.pacing import SLEEPS_MS
from pviommu.native.build import build
from pviommu_abi.dma_test import DescriptorStatus, DmaOp
from pviommu_abi.registers import Profile
from pviommu_abi.shared import CapabilityId, EventReason, GuestRingLine
from pviommu_abi.xen_2024 import PvIommuOp
from vfio_user import Client, Command, RemoteError
from vfio_user.messages import Header

from .guest import ENTRIES, PATIENCE_S, DmaEngine, Guest, Iommu, Ram, Serve, environment, run

IOVA = 0x40000000
NOOP = PvIommuOp(0, 0, 0).pack()
AWAITED = GuestRingLine.offset_of("awaited") // 4


@pytest.fixture
def whole(folder, topology):
    """A server that began as a user's does."""
    with Serve(folder, topology, whole=True) as process:
        yield process


def ended(folder, *arguments, fds=()):
    """Run a server that is expected to give up: its exit status and what it said."""
    process = run(*arguments, "--socket-dir", folder, "--pidfile", folder / "pid", fds=fds)
    assert not (folder / "pid").exists()
    assert process.stdout == ""
    return process.returncode, process.stderr


# -- clients come and go ----------------------------------------------------------------------------------------------


def leave_at_once(guest):
    pass


def leave_with_contexts(guest):
    guest.start()
    guest.iommu.map(guest.attach("dma0"), IOVA >> 12, 0x100, 300)


def leave_with_work_queued(guest):
    leave_with_contexts(guest)
    for _ in range(50):
        guest.iommu.submit(NOOP, ring=False)
    for _ in range(20):
        guest.engines["dma0"].put(DmaOp.FILL, 1 << 20, dst=IOVA)


def leave_with_a_broken_ring(guest):
    guest.start()
    guest.iommu.words[0] = 0x80000000
    guest.iommu.ring_doorbell()


def leave_in_the_middle_of_a_message(guest):
    leave_with_contexts(guest)
    guest.iommu.client.send(Header(1, Command.REGION_WRITE, 64, 0, 0).pack() + b"half")


@pytest.mark.parametrize(
    "leave",
    [
        leave_at_once,
        leave_with_contexts,
        leave_with_work_queued,
        leave_with_a_broken_ring,
        leave_in_the_middle_of_a_message,
    ],
)
@pytest.mark.row("wire", 54)
@pytest.mark.row("defect", "A14")
def test_the_next_client_finds_power_on_state_and_nothing_of_the_last_one(serve, leave):
    with Guest(serve.folder, "dma0", "dma1") as first:
        leave(first)
    with Guest(serve.folder, "dma0", "dma1") as second:
        iommu, engine = second.iommu, second.engines["dma0"]
        registers = ("STATUS", "PROFILE", "RING_SELECT", "RING_ENTRIES", "RING_STATUS", "RING_BASE_LO")
        assert [iommu.read(name) for name in registers] == [0] * len(registers)
        assert not any(iommu.view[:0x1000])
        assert not any(iommu.view[0x4000:])
        assert iommu.capabilities()[CapabilityId.RAM_RANGES][0].start == 0
        assert [engine.read(name) for name in ("CONTROL", "PRODUCER", "CONSUMER")] == [0, 0, 0]
        assert not any(engine.view)
        second.start()
        usage = iommu.usage()
        assert (usage.contexts, usage.bindings, usage.pool_used, usage.mapped_pages) == (0, 0, 0, 0)
        before = second.ram.bytes[:]
        fault = engine.run(DmaOp.FILL, 8, dst=IOVA)
        assert (fault.status, fault.reason) == (DescriptorStatus.FAULT, EventReason.NOT_MAPPED)
        assert second.ram.bytes[:] == before
        ctx = second.attach("dma0")
        assert (ctx, iommu.map(ctx, IOVA >> 12, 0x100, 1)) == (1, (0, 1))
        assert engine.run(DmaOp.FILL, 8, dst=IOVA).status == DescriptorStatus.DONE


@pytest.mark.row("defect", "A14")
def test_memory_of_a_client_that_is_gone_is_not_written_any_more(serve, ram):
    first = Iommu(serve.folder / "iommu.sock", ram)
    engine = DmaEngine(serve.folder / "dma0.sock", ram).start()
    engine.run(DmaOp.FILL, 8, dst=0x1000, pattern=1)
    engine.close()
    first.close()
    before = ram.bytes[:]
    with Guest(serve.folder, "dma0") as second:
        second.start()
        assert second.engines["dma0"].run(DmaOp.FILL, 8, dst=0x1000, pattern=2).status == DescriptorStatus.DONE
        assert second.ram.bytes[0x1000] == 2
    assert ram.bytes[:] == before


def test_a_client_that_keeps_its_mappings_shares_nothing_with_the_next_one(serve, ram):
    first = Iommu(serve.folder / "iommu.sock", ram).start()
    first.client.close()
    second = Iommu(serve.folder / "iommu.sock", ram).start()
    first.words[0] = 0x80000000  # would break the ring
    first.view[0x10000:0x10400] = b"\xff" * 0x400
    assert [second.alloc(), second.alloc()] == [1, 2]
    assert second.read("RING_STATUS") == 1
    assert first.completed == 0
    second.close()
    first.close()


def test_an_engine_that_was_in_a_context_stays_blocked_when_only_the_iommus_client_leaves(serve, ram):
    iommu = Iommu(serve.folder / "iommu.sock", ram).start()
    engine = DmaEngine(serve.folder / "dma0.sock", ram).start()
    assert (iommu.bind("dma0"), iommu.reattach("dma0", iommu.alloc())) == (0, 0)
    iommu.close()
    iommu = Iommu(serve.folder / "iommu.sock", ram)
    fault = engine.run(DmaOp.FILL, 8, dst=0x1000)
    assert (fault.status, fault.reason) == (DescriptorStatus.FAULT, EventReason.BLOCKED)
    engine.client.config_write(4, 2, 2)
    engine.master()
    assert engine.run(DmaOp.FILL, 8, dst=0x1000).reason == EventReason.BLOCKED  # nobody can attach it yet
    iommu.client.reset()
    engine.client.config_write(4, 2, 2)
    engine.master()
    assert engine.run(DmaOp.FILL, 8, dst=0x1000).status == DescriptorStatus.DONE
    engine.close()
    iommu.close()


@pytest.mark.row("defect", "A12")
@pytest.mark.row("defect", "C18")
def test_fifty_clients_leave_no_descriptor_behind(serve):
    counts = set()
    for _ in range(50):
        with Guest(serve.folder, "dma0") as guest:
            guest.start()
            guest.iommu.vectors = guest.iommu.client.enable_msix(2)
            leave_with_contexts_once(guest)
            counts.add(serve.descriptors())
    assert len(counts) == 1


def leave_with_contexts_once(guest):
    assert guest.iommu.map(guest.attach("dma0"), IOVA >> 12, 0x100, 1) == (0, 1)


@pytest.mark.row("wire", 57)
@pytest.mark.row("server", 11)
def test_a_second_client_is_refused_until_the_first_is_gone(serve):
    with Client.connect(serve.folder / "iommu.sock") as first:
        with pytest.raises(RemoteError) as refused:
            Client.connect(serve.folder / "iommu.sock")
        assert refused.value.errno == errno.EBUSY
        assert "has a client already" in serve.wait_for("client-refused")["message"]
        first.device_info()
    Client.connect(serve.folder / "iommu.sock").close()


def test_another_process_is_refused_while_one_is_connected(serve, ram):
    iommu = Iommu(serve.folder / "iommu.sock", ram)
    program = (
        "import sys; from vfio_user import Client\n"
        "try: Client.connect(sys.argv[1])\n"
        "except OSError as error: sys.exit(error.errno)"
    )
    other = subprocess.run(
        [sys.executable, "-c", program, serve.folder / "dma0.sock"], env=environment(), timeout=PATIENCE_S, check=False
    )
    assert other.returncode == errno.EBUSY
    assert "process" in serve.wait_for("client-refused")["message"]
    engine = DmaEngine(serve.folder / "dma0.sock", ram)  # the one that was there first is served
    engine.close()
    iommu.close()


@pytest.mark.row("wire", 51)
def test_memory_without_descriptors_is_refused_in_one_line(serve):
    with Client.connect(serve.folder / "iommu.sock") as client:
        client.dma_map(0, 1 << 20)
        with pytest.raises(RemoteError):
            client.device_info()
    line = serve.wait_for("memory-not-shared")
    assert "share=on" in line["message"]
    assert "\n" not in line["message"]


def test_an_engine_whose_client_has_other_memory_is_refused(serve, ram):
    iommu = Iommu(serve.folder / "iommu.sock", ram)
    other = Ram()
    try:
        with Client.connect(serve.folder / "dma0.sock") as client, pytest.raises(RemoteError):
            client.dma_map(0, other.size, other.fd)
    finally:
        other.close()
        iommu.close()


# -- starting ---------------------------------------------------------------------------------------------------------


@pytest.mark.row("wire", 57)
def test_a_stale_socket_file_is_replaced(folder, topology):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "iommu.sock"))
    with Serve(folder, topology, whole=True), Client.connect(folder / "iommu.sock") as client:
        assert client.device_info().num_regions == 9


def test_a_busy_socket_is_status_3_in_one_line_and_leaves_the_other_server_alone(serve, topology):
    (serve.folder / "other").mkdir()
    process = run(topology, "--socket-dir", serve.folder)
    assert (process.returncode, process.stderr.count("\n")) == (3, 1)
    assert str(serve.folder / "iommu.sock") in process.stderr
    with Client.connect(serve.folder / "iommu.sock") as client:
        assert client.device_info().num_regions == 9


@pytest.mark.parametrize("text", [None, "[iommu", "[iommu]\ncontexts = 0\n", "[iommu]\ncontext = 1\n"])
def test_a_bad_topology_is_status_2_in_one_line(folder, text):
    path = folder / "topology.toml"
    if text is not None:
        path.write_text(text)
    status, said = ended(folder, path)
    assert (status, said.count("\n")) == (2, 1)
    assert str(path) in said


@pytest.mark.parametrize("option", ["iommu", "iommu=x", "nobody=0", "iommu=999"])
def test_a_bad_descriptor_option_is_status_2_in_one_line(folder, topology, option):
    status, said = ended(folder, topology, "--fd", option)
    assert (status, said.count("\n")) == (2, 1)
    assert option in said


@pytest.mark.row("server", 87)
def test_a_descriptor_that_is_no_socket_is_status_2_in_one_line(folder, topology):
    status, said = ended(folder, topology, "--fd", "dma1=0")
    assert (status, said.count("\n")) == (2, 1)
    assert list(folder.iterdir()) == []


def test_an_unwritable_pidfile_is_status_3_and_leaves_no_socket(folder, topology):
    process = run(topology, "--socket-dir", folder, "--pidfile", folder / "missing" / "pid", "--log-level", "error")
    assert (process.returncode, process.stderr.count("\n")) == (3, 1)
    assert list(folder.iterdir()) == []


def test_a_listening_descriptor_is_served_and_its_file_stays(folder, topology):
    path = folder / "given.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Serve(
            folder, topology, "--fd", f"iommu={listener.fileno()}", fds=(listener.fileno(),), whole=True
        ) as serve:
            for _ in range(2):
                with Client.connect(path) as client:
                    assert client.device_info().num_regions == 9
            assert not (folder / "iommu.sock").exists()
            assert serve.stop() == 0
        assert [entry.name for entry in folder.iterdir()] == ["given.sock"]


def test_a_connected_descriptor_is_served(folder, topology, ram):
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_S)
    with Serve(folder, topology, "--fd", f"iommu={theirs.fileno()}", fds=(theirs.fileno(),), whole=True) as serve:
        theirs.close()
        client = Client(ours)
        client.negotiate()
        iommu = Iommu(client, ram).start()
        assert iommu.alloc() == 1
        iommu.close()
        assert serve.wait_for("disconnected")["function"] == "iommu"


# -- at rest ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["python", "native"])
def core(request):
    if request.param == "native":
        build()
    return request.param


def say_who_waits(iommu):
    """As the guest's driver does before it polls."""
    iommu.words[AWAITED] = iommu.producer


@pytest.mark.row("driver", 74)
@pytest.mark.parametrize("tells", [False, True])
def test_a_server_whose_guest_has_nothing_to_do_takes_no_processor_time(folder, topology, ram, core, tells):
    with Serve(folder, topology, "--core", core) as serve:
        iommu = Iommu(folder / "iommu.sock", ram).start()
        for _ in range(100):
            position = iommu.submit(NOOP, posted=tells)
            if tells:
                say_who_waits(iommu)
            iommu.wait(position)
        time.sleep(2 * sum(SLEEPS_MS) / 1000)
        before = processor_time_ns(serve.process.pid)
        time.sleep(0.5)
        assert processor_time_ns(serve.process.pid) == before
        iommu.close()


@pytest.mark.row("driver", 71)
def test_a_server_whose_guest_posts_now_and_then_and_never_waits_hardly_takes_any(folder, topology, ram, core):
    with Serve(folder, topology, "--core", core) as serve:
        iommu = Iommu(folder / "iommu.sock", ram).start()
        for _ in range(2):
            position = iommu.submit(NOOP, posted=True)
            say_who_waits(iommu)
            iommu.wait(position)
        before, began = processor_time_ns(serve.process.pid), time.monotonic_ns()
        for _ in range(ENTRIES - 10):
            iommu.submit(NOOP, posted=True, ring=False)
            time.sleep(0.002)
        taken = time.monotonic_ns() - began
        assert processor_time_ns(serve.process.pid) - before < taken / 4
        position = iommu.submit(NOOP, posted=True, ring=False)
        say_who_waits(iommu)
        iommu.ring_doorbell()
        iommu.wait(position)
        iommu.close()


# -- ending -----------------------------------------------------------------------------------------------------------


def test_the_pidfile_names_the_process_and_appears_when_sockets_listen(whole):
    assert whole.pidfile.read_text() == f"{whole.process.pid}\n"
    names = {entry.name for entry in whole.folder.iterdir()}
    assert names == {"pid", "iommu.sock", "dma0.sock", "dma1.sock"}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_sleeping_server_and_removes_its_files(whole, how):
    whole.process.send_signal(how)
    assert whole.process.wait(2) == 0
    assert list(whole.folder.iterdir()) == []


def test_a_signal_ends_a_server_with_clients_and_a_busy_ring(serve, guest):
    for _ in range(100):
        guest.iommu.submit(NOOP)
    serve.process.send_signal(signal.SIGTERM)
    assert serve.process.wait(2) == 0
    assert list(serve.folder.iterdir()) == []


@pytest.mark.row("server", 126)  # each line is held against the schema as it is read
def test_the_json_log_is_parseable_and_ends_with_the_summary(whole):
    with Guest(whole.folder, "dma0") as guest:
        guest.start()
        guest.iommu.map(guest.attach("dma0"), IOVA >> 12, 0x100, 3)
        guest.engines["dma0"].run(DmaOp.FILL, 8192, dst=IOVA)
        guest.engines["dma0"].run(DmaOp.FILL, 8, dst=0)
    assert {whole.wait_for("disconnected")["function"] for _ in range(2)} == {"iommu", "dma0"}
    assert whole.stop() == 0
    assert all({"time", "level", "event", "message"} <= line.keys() for line in whole.lines)
    summary = whole.lines[-1]
    assert summary["event"] == "summary"
    assert (summary["pages_mapped"], summary["dma_bytes"], summary["faults"]) == (3, 8192, 1)
    assert summary["ops"]["map_pages"] == 1
    assert (summary["contexts"], summary["pool_pages_used"]) == (0, 0)


def test_print_capabilities_is_json_and_starts_nothing(folder, topology):
    process = run(topology, "--print-capabilities", "--socket-dir", folder)
    assert process.returncode == 0
    told = json.loads(process.stdout)
    assert (told["type"], told["profiles"]) == ("pviommu", ["xen-2024", "xen-v7"])
    assert [function["name"] for function in told["functions"]] == ["iommu", "dma0", "dma1"]
    assert os.listdir(folder) == []


def test_a_profile_of_the_last_client_is_not_selected_for_the_next(serve, ram):
    first = Iommu(serve.folder / "iommu.sock", ram).start()
    assert first.read("PROFILE") == Profile.XEN_2024
    first.close()
    second = Iommu(serve.folder / "iommu.sock", ram)
    assert second.read("PROFILE") == Profile.NONE
    second.close()
