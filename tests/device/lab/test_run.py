"""The whole run with a small QEMU and a small server in place of the real ones: statuses, files, clean-up."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvfio_user import Library
from pviommu.lab import run
from pviommu.lab.console import Terminal
from pviommu.lab.problems import EnvironmentProblem, RunError
from pviommu.lab.progress import Progress
from pviommu.lab.run import guarded
from pviommu.resources import topologies
from pviommu.streams import Streams

if TYPE_CHECKING:
    from conftest import Lab


@pytest.mark.row("server", 126)  # of every run of this file, results.json is held against the schema
def test_passing_guest_ends_with_status_0_and_all_files(lab: Lab) -> None:
    status, shown = lab.main()
    assert status == 0
    results = json.loads(lab.result("results.json"))
    assert results["verdict"] == "passed"
    assert results["tests"] == {"passed": 1, "failed": 0, "skipped": 0}
    assert results["counts"]["ops"] == {"map_pages": 5}
    assert set(results["versions"]) == {"pviommu", "python", "qemu", "kernel", "accelerator"}
    assert "testsuite" in lab.result("junit.xml")
    assert lab.result("console.log") == "booted\n"
    assert "vfio-user-pci" in lab.result("qemu-command.txt")
    assert '"summary"' in lab.result("server.jsonl")
    assert "ok   bind" in shown
    assert "verdict passed" in shown


def test_run_leaves_no_sockets_and_no_runtime_folder(lab: Lab) -> None:
    lab.main()
    assert list((lab.folder / "runtime").iterdir()) == []


@pytest.mark.parametrize(
    ("guest", "problem"),
    [
        (r"printf 'KTAP version 1\n1..1\nnot ok 1 bind\n# lab: exit 0\n' >&3", "1 of 1 tests failed"),
        (r"printf 'KTAP version 1\n1..2\nok 1 bind\n# lab: exit 0\n' >&3", "planned 2 tests, 1 reported"),
        (r"printf 'KTAP version 1\n1..1\nok 1 bind\n' >&3", "crashed or was cut off"),
        (r"printf 'KTAP version 1\n1..1\nok 1 bind\n# lab: exit 1\n' >&3", "ended with status 1"),
        (r"printf 'KTAP version 1\n1..0\n# lab: exit 0\n' >&3", "no test ran"),
        ("true", "no test ran"),
    ],
)
def test_guest_that_did_not_pass_ends_with_status_1_and_the_reason(lab: Lab, guest: str, problem: str) -> None:
    lab.guest = guest
    status, shown = lab.main()
    assert status == 1
    assert json.loads(lab.result("results.json"))["verdict"] == "failed"
    assert problem in shown


def test_server_that_dies_under_passing_tests_fails_the_run(lab: Lab) -> None:
    pid = lab.folder / "server.pid"
    lab.server = lab.server.replace(
        "\nsleep_for_ever()", f"\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\nsys.exit('traceback')"
    )
    # The guest passes only after the server is dead, so that the order is certain.
    lab.guest = f"until [[ $(</proc/$(<{pid})/status) == *zombie* ]]; do :; done 2>/dev/null; {lab.guest}"
    status, shown = lab.main()
    assert status == 1
    assert "the server ended unexpectedly with status 1: traceback" in shown


def test_guest_that_hangs_ends_with_status_124(lab: Lab) -> None:
    lab.guest = r"printf 'KTAP version 1\n1..2\nok 1 bind\n' >&3; exec sleep 1000"
    status, shown = lab.main("--timeout", "0.7")
    assert status == 124
    results = json.loads(lab.result("results.json"))
    assert results["verdict"] == "timeout"
    assert "the guest did not finish within 0.7 s" in results["problems"]
    assert "verdict timeout" in shown


def test_qemu_that_refuses_its_devices_ends_with_status_3_and_its_words(lab: Lab) -> None:
    lab.guest = "echo 'Failed to connect to iommu.sock' >&2; exit 1"
    status, shown = lab.main()
    assert status == 3
    assert json.loads(lab.result("results.json"))["verdict"] == "error"
    assert "QEMU ended with status 1: Failed to connect to iommu.sock" in shown


def test_refused_topology_ends_with_status_2_and_one_line(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.server = "import sys; print('lab.toml: unknown key rnigs', file=sys.stderr); sys.exit(2)"
    assert lab.main()[0] == 2
    assert capsys.readouterr().err == "pviommu lab: lab.toml: unknown key rnigs\n"
    assert not (lab.folder / "lab-results").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--memory", "5T"), "--memory 5T"),
        (("--timeout", "0"), "--timeout 0: give a number of seconds above 0"),
        (("--timeout", "nan"), "--timeout nan: give a number of seconds above 0"),
        (("--vcpus", "0"), "--vcpus 0: give 1 to 64"),
        (("--topology", "/no/such.toml"), "--topology /no/such.toml: no such file"),
        (("--results", "/proc/none"), "--results /proc/none: "),
        (("--msi", "its"), "--msi its: the machine of amd64 has apic"),
        (("--arch", "arm64", "--msi", "apic"), "--msi apic: the machine of arm64 has its or gicv2m"),
        (("--arch", "arm64", "--long"), "--long: not with --arch arm64"),
    ],
)
def test_wrong_option_ends_with_status_2_and_says_what_is_allowed(
    lab: Lab, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert lab.main(*options)[0] == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "machine", "window", "isolated"),
    [
        ((), "virt,memory-backend=ram,gic-version=3,msi=its", "0x08080000+0x20000", True),
        (("--msi", "gicv2m"), "virt,memory-backend=ram,gic-version=2,msi=gicv2m", "0x08020000+0x1000", False),
    ],
)
def test_machine_and_server_of_an_arm64_guest_agree_about_its_msi_window(
    lab: Lab, options: tuple[str, ...], machine: str, window: str, isolated: bool
) -> None:
    say = 'print("--msi", sys.argv[sys.argv.index("--msi") + 1], file=sys.stderr, flush=True)'
    lab.server = lab.server.replace(
        "import json, os, signal, socket, sys, time", f"import json, os, signal, socket, sys, time\n{say}"
    )

    config = lab.image_files("--arch", "arm64", *options)["/lab/config"]

    assert (b"isolated_msi=1\n" in config) is isolated
    assert machine in lab.result("qemu-command.txt")
    assert f"--msi {window}" in lab.result("server.jsonl")


@pytest.mark.row("server", 125)
def test_a_shipped_topology_is_taken_by_its_name(lab: Lab) -> None:
    say = "print(sys.argv[2], file=sys.stderr, flush=True)"
    lab.server = lab.server.replace("\nsleep_for_ever()", f"\n{say}\nsleep_for_ever()")

    assert lab.main("--topology", "reserved")[0] == 0

    assert str(topologies()["reserved"]) in lab.result("server.jsonl")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ((), "lab-cards"),
        (("--kernel", "debian-7"), "lab-cards"),
        (("--arch", "arm64", "--kernel", "debian-16k"), "lab-cards"),
        (("--arch", "arm64", "--kernel", "lab-64k"), "lab"),
        (("--kernel", "lab-debug"), "lab"),
        (("--scenario", "slow-invalidation"), "lab"),
        (("--long",), "lab"),
        (("--suite", "vfio"), "lab"),
        (("--run", "x.sh"), "lab"),
    ],
)
def test_the_labs_own_tests_have_network_cards_where_its_kernel_can_drive_them(
    options: tuple[str, ...], name: str
) -> None:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    assert run._usual_topology(parser.parse_args(options)) == Path(name)


def test_environment_problem_ends_with_status_3_and_how_to_get_it(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(progress: Progress, wanted: run.Wanted) -> run.Setup:
        raise EnvironmentProblem("apt-get is missing", "install the package apt")

    monkeypatch.setattr(lab, "provide", refuse)
    assert lab.main()[0] == 3
    assert capsys.readouterr().err == "pviommu lab: apt-get is missing; install the package apt\n"


def test_failed_module_build_ends_with_status_3_and_the_compilers_output(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(progress: Progress, wanted: run.Wanted) -> run.Setup:
        raise RunError("the guest modules do not build", "a.c:1: error")

    monkeypatch.setattr(lab, "provide", fail)
    assert lab.main()[0] == 3
    assert capsys.readouterr().err == "a.c:1: error\npviommu lab: the guest modules do not build\n"


def test_only_setup_stops_before_the_server(lab: Lab) -> None:
    lab.server = "raise SystemExit(9)"
    status, shown = lab.main("--only-setup")
    assert status == 0
    assert shown == "ready: QEMU 11.1.3 (tcg), Linux 6.12\n"
    assert not (lab.folder / "lab-results").exists()


def test_verbose_shows_diagnostics_of_passing_tests(lab: Lab) -> None:
    lab.guest = r"printf 'KTAP version 1\n1..1\n# slot 7\nok 1 bind\n# lab: exit 0\n' >&3"
    assert "slot 7" not in lab.main()[1]
    assert "slot 7" in lab.main("--verbose")[1]


def test_failed_test_is_shown_with_its_diagnostics(lab: Lab) -> None:
    lab.guest = r"printf 'KTAP version 1\n1..1\n# got 3, expected 4\nnot ok 1 map\n# lab: exit 0\n' >&3"
    assert "FAIL map\n     # got 3, expected 4\n" in lab.main()[1]


@pytest.mark.row("server", 93)
@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_termination_ends_the_children_and_removes_the_sockets(lab: Lab, name: str) -> None:
    lab.guest = f"echo $$ >{lab.folder}/guest.pid; kill -{name} {os.getpid()}; exec sleep 1000"
    status, _ = lab.main("--timeout", "60")
    assert status == 130
    assert list((lab.folder / "runtime").iterdir()) == []
    guest = (lab.folder / "guest.pid").read_text().strip()
    assert not Path(f"/proc/{guest}").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


@pytest.mark.row("server", 93)
def test_a_second_hangup_does_not_interrupt_the_cleaning_up() -> None:
    cleaned = []

    def work() -> int:
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            signal.raise_signal(signal.SIGHUP)
            cleaned.append(True)
        return 0

    assert guarded("lab", work) == 130
    assert cleaned == [True]


@pytest.mark.row("server", 93)
def test_under_nohup_a_hangup_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert guarded("lab", lambda: signal.raise_signal(signal.SIGHUP) or 0) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_options_reach_the_guest_and_its_kernel(lab: Lab) -> None:
    config = lab.image_files("--profile", "xen-v7", "--mode", "strict", "--vcpus", "3")["/lab/config"]

    assert config == b"profile=xen-v7\ntables=auto\nmode=strict\nvcpus=3\nkernel=debian\nlong=0\nkeep=0\nscenario=lab\n"
    command = lab.result("qemu-command.txt")
    assert " -smp 3 " in command
    assert " iommu.strict=1" in command


@pytest.mark.parametrize(
    ("options", "tables"),
    [
        ((), "auto"),
        (("--tables", "off"), "off"),
        (("--scenario", "lab"), "off"),
        (("--scenario", "lab", "--tables", "auto"), "auto"),
    ],
)
def test_tables_are_the_guests_unless_rules_are_about_what_is_sent(
    lab: Lab, options: tuple[str, ...], tables: str
) -> None:
    assert f"\ntables={tables}\n".encode() in lab.image_files(*options)["/lab/config"]


@pytest.mark.parametrize(("kernel", "name"), [("lab-debug", "lab-debug"), ("/src/linux", "own")])
def test_kernel_is_asked_for_as_given_and_named_in_the_guest(lab: Lab, kernel: str, name: str) -> None:
    config = lab.image_files("--kernel", kernel)["/lab/config"]

    assert lab.kernels == [kernel]
    assert f"kernel={name}\n".encode() in config


def test_time_limit_grows_with_what_is_run() -> None:
    limits = [
        run.time_limit(None, run.GuestSettings(kernel=kernel, long=long))
        for kernel, long in (("debian", False), ("lab-debug", False), ("debian", True), ("lab-debug", True))
    ]

    assert limits == [300, 1200, 900, 3600]


def test_time_limit_that_was_asked_for_holds() -> None:
    assert run.time_limit(7.0, run.GuestSettings(long=True)) == 7.0


PROGRAM = r"""printf 'KTAP version 1\n1..1\n# lab: program %s\n' {status} >&3
printf '%s' 'its output' >&"$output"
printf '# lab: request output-end 10\n' >&3
read -r answer <&3
[ "$answer" = 'done output-end' ] && printf '{result} 1 go.sh\n# lab: exit {status}\n' >&3"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "go.sh"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("status", "result"), [(0, "ok"), (7, "not ok")])
def test_status_of_the_users_program_is_the_verdict(lab: Lab, script: Path, status: int, result: str) -> None:
    lab.guest = PROGRAM.format(status=status, result=result)
    with (lab.folder / "shown").open("wb") as shown:
        lab.terminal = Terminal(0, shown.fileno())
        ended, summary = lab.main("--run", str(script))

    assert ended == (1 if status else 0), summary
    results = json.loads(lab.result("results.json"))
    assert results["program"] == {
        "name": "go.sh",
        "status": status,
        "output": {"file": "program.out", "bytes": 10},
    }
    assert (f"go.sh ended with status {status}" in results["problems"]) == bool(status)
    assert lab.result("program.out") == "its output"
    assert (lab.folder / "shown").read_text() == "its output"
    assert f"program go.sh ended with status {status}; 10 bytes of output in program.out" in summary


def test_program_that_hangs_ends_with_status_124_and_keeps_its_output(lab: Lab, script: Path) -> None:
    lab.guest = r"""printf 'its output' >&"$output"; exec sleep 1000"""
    assert lab.main("--run", str(script), "--timeout", "0.7")[0] == 124
    results = json.loads(lab.result("results.json"))
    assert results["program"]["status"] is None
    assert lab.result("program.out") == "its output"


def test_output_that_did_not_come_whole_fails_the_run(lab: Lab, script: Path) -> None:
    lab.guest = PROGRAM.format(status=0, result="ok").replace("output-end 10", "output-end 11")
    lab.guest = lab.guest.replace("[ ", "printf '# %s\\n' \"$answer\" >&3; [ ")
    assert lab.main("--run", str(script), "--timeout", "0.7")[0] == 124


def test_guest_gets_the_users_files(lab: Lab, script: Path) -> None:
    data = lab.folder / "data"
    data.write_bytes(b"\0\xff")
    options = lab.image_options("--add", str(data), "--run", str(script))

    assert isinstance(options["files"], dict)
    assert options["files"]["/lab/add/data"] == b"\0\xff"
    assert b"program=go.sh\n" in options["files"]["/lab/config"]
    assert options["executables"] == {"/lab/add/go.sh": b"#!/bin/sh\n"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--add", "/no/such"), "--add /no/such: no such file or directory"),
        (("--add", "/dev"), "--add /dev: a folder"),
        (("--run", "/etc/passwd"), "--run /etc/passwd: not executable"),
        (
            ("--suite", "vfio", "--kernel", "debian"),
            "--suite vfio needs iommufd, which debian lacks: give --kernel lab",
        ),
        (("--suite", "vfio", "--long"), "--suite and --long: there are no long tests"),
        (("--suite", "vfio", "--cycles", "3"), "--cycles and --suite: --suite replaces the test that has cycles"),
        (("--scenario", "lab", "--cycles", "3"), "--cycles and --scenario: --scenario replaces the test"),
        (("--cycles", "0"), "--cycles 0: give 1 to 100000"),
        (("--cycles", "100001"), "--cycles 100001: give 1 to 100000"),
    ],
)
def test_wrong_file_or_suite_ends_with_status_2(
    lab: Lab, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert lab.main(*options)[0] == 2
    assert words in capsys.readouterr().err
    assert not (lab.folder / "lab-results").exists()


def test_script_for_an_interpreter_that_the_guest_lacks_is_refused(
    lab: Lab, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.write_text("#!/usr/bin/python3\n")
    assert lab.main("--run", str(script))[0] == 2
    assert "its first line names /usr/bin/python3, which the guest does not have" in capsys.readouterr().err


def test_files_that_the_guests_memory_cannot_hold_are_refused(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    large = lab.folder / "large"
    with large.open("wb") as file:
        file.truncate(40 << 20)
    assert lab.main("--add", str(large), "--memory", "128M")[0] == 2
    assert "--add: 40 MB in all; the guest's memory holds them twice at its start, give --memory at least 160M" in (
        capsys.readouterr().err
    )


SUITE = r"""printf 'KTAP version 1\n1..2\nok 1 bind\n  KTAP version 1\n  1..1\n    TAP version 13\n    1..3\n' >&3
printf '    ok 1 a\n    ok 2 b # SKIP none\n    {c} 3 c\n  {c} 1 vfio_a_test\n' >&3
printf '{c} 2 selftests/vfio\n# lab: exit 0\n' >&3"""


@pytest.mark.parametrize("result", ["ok", "not ok"])
def test_cases_of_a_suite_are_counted_by_themselves_too(lab: Lab, result: str) -> None:
    lab.guest = SUITE.format(c=result)
    status, shown = lab.main("--suite", "vfio")

    good = result == "ok"
    assert status == (0 if good else 1), shown
    assert lab.kernels == ["lab"]
    results = json.loads(lab.result("results.json"))
    counts = {"passed": 1 + good, "failed": 1 - good, "skipped": 1}
    assert results["suite"] == {"name": "vfio", **counts}
    assert results["tests"] == {**counts, "passed": 2 + good}
    assert f"suite   vfio: {1 + good} passed, {1 - good} failed, 1 skipped" in shown


def test_guest_of_a_suite_gets_its_programs_and_huge_pages(lab: Lab) -> None:
    options = lab.image_options("--suite", "vfio")
    assert options["executables"] == {"/lab/suite/vfio_a_test": b"a program"}
    assert "pdpe1gb=on" in lab.result("qemu-command.txt")


def test_suite_of_which_nothing_ran_has_not_passed(lab: Lab) -> None:
    lab.guest = r"printf 'KTAP version 1\n1..1\nok 1 selftests/vfio\n# lab: exit 0\n' >&3"
    status, shown = lab.main("--suite", "vfio")

    assert status == 1
    assert "no test of the suite vfio passed" in shown


@pytest.mark.row("server", 116)
def test_a_run_whose_output_is_lost_is_judged_and_leaves_its_results(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with Streams() as streams:
            assert lab.main(shown=sys.stdout)[0] == 0
            assert streams.status(0) == 3

    assert json.loads(lab.result("results.json"))["verdict"] == "passed"
    assert "testsuite" in lab.result("junit.xml")
    assert capfd.readouterr().err == "pviommu: standard output cannot be written: No space left on device\n"


@pytest.mark.row("server", 116)
@pytest.mark.parametrize(("passes", "status"), [(True, 3), (False, 1)])
def test_results_that_cannot_be_written_are_told_and_the_verdict_is_shown(
    lab: Lab, capsys: pytest.CaptureFixture[str], passes: bool, status: int
) -> None:
    full = (
        f"ln -s /dev/full {lab.folder}/lab-results/latest/.results.json.new"  # where it is written before it is whole
    )
    lab.guest = f"{full}; {lab.guest if passes else lab.guest.replace('ok 1', 'not ok 1')}"

    ended, shown = lab.main()

    assert ended == status
    assert f"verdict {'passed' if passes else 'failed'}" in shown
    said = capsys.readouterr().err
    assert said.startswith("pviommu lab: the results are incomplete: ")
    assert said.endswith("/results.json: No space left on device\n")
    assert not (lab.folder / "lab-results/latest/results.json").exists()
    assert "testsuite" in lab.result("junit.xml")


@pytest.mark.row("server", 115)
def test_a_file_of_the_run_for_which_there_is_no_room_is_an_error_and_leaves_results(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        return real(Path("/dev/full") if "initrd" in path.name else path, data)

    monkeypatch.setattr(Path, "write_bytes", full)

    status, shown = lab.main()

    assert status == 3
    assert "/initrd: No space left on device" in shown
    assert json.loads(lab.result("results.json"))["verdict"] == "error"


@pytest.mark.row("server", 117)
def test_output_of_a_program_for_which_there_is_no_room_fails_the_run_and_holds_nobody_up(
    lab: Lab, script: Path
) -> None:
    lab.guest = PROGRAM.format(status=0, result="ok")
    with (lab.folder / "shown").open("wb") as shown:
        lab.terminal = Terminal(0, shown.fileno())
        real = Path.open

        def open_full(path: Path, *args: object, **others: object) -> object:
            return real(Path("/dev/full") if path.name == "program.out" else path, *args, **others)  # type: ignore[call-overload]

        lab.monkeypatch.setattr(Path, "open", open_full)
        status, summary = lab.main("--run", str(script))

    assert status == 1
    assert (lab.folder / "shown").read_text() == "its output"
    assert "problem program.out is incomplete: No space left on device" in summary


SAYS_HOW = """started = {"event": "started", "words": sys.argv[4:], "library": os.environ.get("LIBVFIO_USER")}
print(json.dumps(started), file=sys.stderr)
print(json.dumps({"event": "ranges-full", "message": "dma0: 16 ranges of memory"}), file=sys.stderr)
sleep_for_ever()"""


def test_the_server_is_told_of_the_other_transport_and_of_its_library(lab: Lab) -> None:
    lab.server = lab.server.replace("\nsleep_for_ever()", f"\n{SAYS_HOW}")
    library = str(lab.folder / "vfio-user.so")

    status, shown = lab.main("--transport", "libvfio-user")

    assert status == 0
    started = json.loads(lab.result("server.jsonl").splitlines()[0])
    words = started["words"]
    assert words[words.index("--transport") + 1] == "libvfio-user"
    assert started["library"] == library
    results = json.loads(lab.result("results.json"))
    assert results["versions"]["libvfio-user"] == f"2022, {library}"
    assert results["problems"] == []
    assert shown.splitlines()[-1].endswith(" tcg, Linux 6.12, behind libvfio-user)")


def test_without_the_option_the_server_is_not_told_of_a_transport(lab: Lab) -> None:
    lab.server = lab.server.replace("\nsleep_for_ever()", f"\n{SAYS_HOW}")
    lab.main()
    started = json.loads(lab.result("server.jsonl").splitlines()[0])
    assert "--transport" not in started["words"]


def test_a_run_that_failed_says_that_there_was_no_room_for_more_memory(lab: Lab) -> None:
    lab.server = lab.server.replace("\nsleep_for_ever()", f"\n{SAYS_HOW}")
    lab.guest = "true"
    status, _ = lab.main("--transport", "libvfio-user")
    assert status == 1
    assert json.loads(lab.result("results.json"))["problems"][-1] == "dma0: 16 ranges of memory"


def test_a_library_that_cannot_be_had_ends_with_status_3_before_anything_starts(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(progress: Progress) -> Library:
        raise EnvironmentProblem("libvfio-user /x.so: LIBVFIO_USER names no file", "build one")

    monkeypatch.setattr(lab, "provide_library", refuse)
    assert lab.main()[0] == 0
    assert lab.main("--transport", "libvfio-user", "--only-setup")[0] == 3
    assert capsys.readouterr().err == "pviommu lab: libvfio-user /x.so: LIBVFIO_USER names no file; build one\n"
