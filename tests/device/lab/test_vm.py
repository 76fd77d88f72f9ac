"""The machine: its command line, and reading a report from a QEMU that ends well, badly or not at all."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pviommu.lab.architecture import ARM64, interrupt_controller
from pviommu.lab.problems import RunError, UsageError
from pviommu.lab.processes import Outcome
from pviommu.lab.provision import Toolbox
from pviommu.lab.vm import GuestTimeoutError, VirtualMachine, VmConfig, compose, nic_backend, parse_memory


def toolbox(tmp_path: Path, *command: str) -> Toolbox:
    kernel = tmp_path / "vmlinuz"
    return Toolbox(tmp_path, command or ("qemu",), {}, "11.1", kernel, "6.12", tmp_path / "busybox")


def config(tmp_path: Path, **changes: object) -> VmConfig:
    values = {
        "initrd": tmp_path / "initrd",
        "console_log": tmp_path / "console.log",
        "qemu_log": tmp_path / "qemu.log",
        "accelerator": "tcg",
    }
    return VmConfig(**{**values, **changes})  # type: ignore[arg-type]


def fake_qemu(tmp_path: Path, body: str) -> Toolbox:
    """A QEMU that finds its report descriptor as the real one does and then runs ``body`` with it on fd 3."""
    script = tmp_path / "qemu"
    script.write_text(
        "#!/bin/bash\n"
        'for word in "$@"; do case $word in socket,id=lab,fd=*) fd=${word##*=};; esac; done\n'
        f'exec 3>&"$fd"\n{body}\n'
    )
    script.chmod(0o755)
    return toolbox(tmp_path, str(script))


def values(command: list[str], option: str) -> list[str]:
    return [command[at + 1] for at, word in enumerate(command) if word == option]


def test_guest_memory_is_a_shared_file_of_the_size_asked_for(tmp_path: Path) -> None:
    command = compose(toolbox(tmp_path), config(tmp_path, memory=5 << 30), 7)
    assert values(command, "-object") == ["memory-backend-memfd,id=ram,size=5368709120,share=on"]
    assert values(command, "-machine") == ["q35,memory-backend=ram"]
    assert values(command, "-m") == ["5120M"]


def test_each_server_socket_becomes_a_device_in_the_next_slot(tmp_path: Path) -> None:
    sockets = [Path("/run/a.sock"), Path("/run/b.sock")]
    command = compose(toolbox(tmp_path), config(tmp_path, sockets=sockets), 7)
    devices = [json.loads(value) for value in values(command, "-device") if value.startswith("{")]
    assert devices == [
        {"driver": "vfio-user-pci", "addr": "0x10", "socket": {"type": "unix", "path": "/run/a.sock"}},
        {"driver": "vfio-user-pci", "addr": "0x11", "socket": {"type": "unix", "path": "/run/b.sock"}},
    ]


def test_socket_behind_a_port_gets_a_root_port_in_the_slot_that_would_be_its_own(tmp_path: Path) -> None:
    sockets = [Path("/run/a.sock"), Path("/run/b.sock")]
    command = compose(toolbox(tmp_path), config(tmp_path, sockets=sockets, behind_ports=sockets[1:]), 7)
    port, device = values(command, "-device")[-2:]
    assert port == "pcie-root-port,id=port11,chassis=17,slot=17,addr=0x11"
    assert json.loads(device) == {
        "driver": "vfio-user-pci",
        "bus": "port11",
        "addr": "0x0",
        "socket": {"type": "unix", "path": "/run/b.sock"},
    }


def test_machine_has_a_nic_only_when_asked_for(tmp_path: Path) -> None:
    plain = compose(toolbox(tmp_path), config(tmp_path), 7)
    assert values(plain, "-netdev") == []
    command = compose(toolbox(tmp_path), config(tmp_path, nic="user,id=net,restrict=on"), 7)
    assert values(command, "-netdev") == ["user,id=net,restrict=on"]
    assert "virtio-net-pci,netdev=net,romfile=,addr=0x4" in values(command, "-device")


@pytest.mark.parametrize(
    ("offered", "backend"),
    [("socket\nhubport\nuser\n", "user,id=net,restrict=on"), ("socket\nvhost-user\n", "hubport,id=net,hubid=0")],
)
def test_nic_falls_back_to_a_hub_where_qemu_has_no_user_network(tmp_path: Path, offered: str, backend: str) -> None:
    def run(command: Sequence[str]) -> Outcome:
        assert list(command) == ["env", "qemu", "-machine", "none", "-netdev", "help"]
        return Outcome(0, f"Available netdev backend types:\n{offered}")

    assert nic_backend(toolbox(tmp_path), run) == backend


def test_console_is_logged_whether_or_not_it_can_be_reached(tmp_path: Path) -> None:
    plain = values(compose(toolbox(tmp_path), config(tmp_path), 7), "-chardev")
    assert plain[0] == f"file,id=console,path={tmp_path}/console.log"
    reached = values(compose(toolbox(tmp_path), config(tmp_path, console_socket=Path("/run/a,b")), 7), "-chardev")
    assert reached[0] == f"socket,id=console,path=/run/a,,b,server=on,wait=off,logfile={tmp_path}/console.log"


def test_debugger_is_waited_for_only_when_asked_for(tmp_path: Path) -> None:
    assert "-S" not in compose(toolbox(tmp_path), config(tmp_path), 7)
    command = compose(toolbox(tmp_path), config(tmp_path, gdb_socket=Path("/run/gdb")), 7)
    assert "-S" in command
    assert values(command, "-gdb") == ["chardev:gdb"]
    assert "socket,id=gdb,path=/run/gdb,server=on,wait=off" in values(command, "-chardev")


def test_report_has_a_serial_port_of_its_own(tmp_path: Path) -> None:
    command = compose(toolbox(tmp_path), config(tmp_path), 7)
    assert "socket,id=lab,fd=7" in values(command, "-chardev")
    assert "virtserialport,bus=serial.0,chardev=lab,name=org.pviommu.lab" in values(command, "-device")


def test_users_program_has_a_serial_port_of_its_own_only_when_there_is_one(tmp_path: Path) -> None:
    port = "virtserialport,bus=serial.0,chardev=output,name=org.pviommu.output"

    assert port not in compose(toolbox(tmp_path), config(tmp_path), 7)
    command = compose(toolbox(tmp_path), config(tmp_path, output=9), 7)
    assert port in command
    assert "socket,id=output,fd=9" in command


def test_extra_arguments_come_before_the_devices_so_that_they_may_add_an_iommu(tmp_path: Path) -> None:
    command = compose(toolbox(tmp_path), config(tmp_path, extra_arguments=("-device", "intel-iommu")), 7)
    assert values(command, "-device")[0] == "intel-iommu"


def test_kernel_prefers_addresses_above_4_gib_and_reboots_at_once_on_panic(tmp_path: Path) -> None:
    words = values(compose(toolbox(tmp_path), config(tmp_path), 7), "-append")[0].split()
    assert {"iommu.forcedac=1", "panic=-1", "console=ttyS0"} <= set(words)


@pytest.mark.parametrize(
    ("name", "machine"), [("its", "gic-version=3,msi=its"), ("gicv2m", "gic-version=2,msi=gicv2m")]
)
def test_guest_of_arm64_has_its_own_machine_processor_and_console(tmp_path: Path, name: str, machine: str) -> None:
    options = interrupt_controller(ARM64, name).machine
    arm = replace(toolbox(tmp_path), architecture=ARM64)

    command = compose(arm, config(tmp_path, machine_options=options), 7)

    assert values(command, "-machine") == [f"virt,memory-backend=ram,{machine}"]
    assert values(command, "-cpu") == ["cortex-a76"]
    words = values(command, "-append")[0].split()
    assert "console=ttyAMA0" in words
    assert "tsc=reliable" not in words


def test_host_processor_and_qmp_only_where_they_apply(tmp_path: Path) -> None:
    plain = compose(toolbox(tmp_path), config(tmp_path), 7)
    assert "-cpu" not in plain
    assert "-qmp" not in plain
    full = compose(toolbox(tmp_path), config(tmp_path, accelerator="kvm", qmp_socket=Path("/run/a,b")), 7)
    assert values(full, "-cpu") == ["host"]
    assert values(full, "-qmp") == ["unix:/run/a,,b,server=on,wait=off"]


def test_more_devices_than_slots_are_refused(tmp_path: Path) -> None:
    sockets = [Path(f"/run/{n}") for n in range(16)]
    with pytest.raises(UsageError, match="16 vfio-user devices: the machine has room for 15"):
        compose(toolbox(tmp_path), config(tmp_path, sockets=sockets), 7)


@pytest.mark.parametrize(("text", "size"), [("5G", 5 << 30), ("512M", 512 << 20), ("1gib", 1 << 30)])
def test_memory_sizes_are_understood(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "5", "64M", "-1G", "5T", "1.5G"])
def test_other_memory_sizes_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match="--memory"):
        parse_memory(text)


def test_report_lines_arrive_whole_and_end_with_qemu(tmp_path: Path) -> None:
    tools = fake_qemu(tmp_path, r"printf 'KTAP ver' >&3; printf 'sion 1\nok 1 a\nlast' >&3")
    with VirtualMachine(tools, config(tmp_path)) as machine:
        machine.start()
        assert list(machine.lines(time.monotonic() + 30)) == ["KTAP version 1", "ok 1 a", "last"]


def test_endless_line_is_cut_not_collected(tmp_path: Path) -> None:
    tools = fake_qemu(tmp_path, "head -c 1000000 /dev/zero | tr '\\0' x >&3; printf '\\nok 1 a\\n' >&3")
    with VirtualMachine(tools, config(tmp_path)) as machine:
        machine.start()
        lines = list(machine.lines(time.monotonic() + 30))
    assert max(map(len, lines)) == 4096
    assert lines[-1] == "ok 1 a"


def test_failing_qemu_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    tools = fake_qemu(tmp_path, "echo 'qemu: Failed to connect to /run/a.sock' >&2; exit 1")
    with VirtualMachine(tools, config(tmp_path)) as machine:
        machine.start()
        with pytest.raises(RunError, match=r"status 1: qemu: Failed to connect to /run/a\.sock"):
            list(machine.lines(time.monotonic() + 30))


def test_silent_guest_runs_into_its_deadline_and_is_killed(tmp_path: Path) -> None:
    tools = fake_qemu(tmp_path, f"echo $$ >{tmp_path}/pid; echo started >&3; exec sleep 1000")
    with VirtualMachine(tools, config(tmp_path)) as machine:
        machine.start()
        lines = machine.lines(time.monotonic() + 30)
        assert next(lines) == "started"
        with pytest.raises(GuestTimeoutError):
            list(machine.lines(time.monotonic() - 1))
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()


def test_qemu_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    with VirtualMachine(toolbox(tmp_path, "/no/such/qemu"), config(tmp_path)) as machine:
        with pytest.raises(RunError, match="QEMU does not start: /no/such/qemu: No such file"):
            machine.start()


def test_command_line_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    with VirtualMachine(toolbox(tmp_path, "/a b/qemu"), config(tmp_path)) as machine:
        assert machine.command_line.startswith("'/a b/qemu' -nodefaults")


def test_a_line_sent_reaches_the_guest_on_the_channel_of_its_report(tmp_path: Path) -> None:
    toolbox = fake_qemu(tmp_path, 'echo ready >&3; read -r answer <&3; echo "got $answer" >&3')
    with VirtualMachine(toolbox, config(tmp_path)) as machine:
        machine.start()
        lines = machine.lines(time.monotonic() + 20)
        assert next(lines) == "ready"
        machine.send("go")
        assert list(lines) == ["got go"]


def test_a_line_for_a_guest_that_has_ended_is_a_run_error(tmp_path: Path) -> None:
    with VirtualMachine(fake_qemu(tmp_path, "exit 0"), config(tmp_path)) as machine:
        machine.start()
        assert list(machine.lines(time.monotonic() + 20)) == []
        with pytest.raises(RunError, match="does not accept a line"):
            machine.send("go")


class Alarm:
    """Due from the start; once rung, it lets the guest go on."""

    def __init__(self, machine: VirtualMachine) -> None:
        self.machine = machine
        self.rung = 0
        self.due: float | None = 0.0

    def ring(self) -> None:
        self.rung += 1
        self.due = None
        self.machine.send("go")


def test_alarm_is_rung_once_while_the_guest_is_silent(tmp_path: Path) -> None:
    tools = fake_qemu(tmp_path, 'read -r answer <&3; echo "got $answer" >&3')
    with VirtualMachine(tools, config(tmp_path)) as machine:
        alarm = Alarm(machine)
        machine.start()
        assert list(machine.lines(time.monotonic() + 20, alarm)) == ["got go"]
    assert alarm.rung == 1


def test_alarm_that_is_due_later_wakes_a_reader_that_has_no_deadline(tmp_path: Path) -> None:
    tools = fake_qemu(tmp_path, 'read -r answer <&3; echo "got $answer" >&3')
    with VirtualMachine(tools, config(tmp_path)) as machine:
        alarm = Alarm(machine)
        alarm.due = time.monotonic() + 0.05
        machine.start()
        assert list(machine.lines(math.inf, alarm)) == ["got go"]
    assert alarm.rung == 1
