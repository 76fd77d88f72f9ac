"""Checks of the guest's C: what counts as a complaint, what is looked at, where checkpatch comes from."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pviommu.lab import driver_checks
from pviommu.lab.build import Sandbox
from pviommu.lab.driver_checks import DriverChecks, written_sources
from pviommu.lab.problems import EnvironmentProblem
from pviommu.lab.processes import Outcome
from pviommu.lab.progress import Progress

GENERATED = "/* The function. Generated from the declarations of pviommu_abi; do not edit. */\n"


class FakeRoot:
    """Stands in for the programs of a root: ``answer`` gets a program's words, without the way into the root."""

    def __init__(self, root: Path, answer: Callable[[list[str]], Outcome]) -> None:
        self.root = root
        self.programs: list[list[str]] = []
        self._answer = answer

    def __call__(self, command: Sequence[str]) -> Outcome:
        words = list(command)
        program = words[words.index("HOME=/tmp") + 1 :]
        self.programs.append(program)
        return self._answer(program)

    @property
    def checks(self) -> DriverChecks:
        return DriverChecks(self.root, Sandbox(["unshare"]), self)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    for name in ("build", "usr/src/checkpatch", "usr/lib/modules/6.12-cloud/build", "usr/lib/modules/7.3-cloud/build"):
        (folder / name).mkdir(parents=True)
    (folder / "usr/lib/modules/7.4-headless").mkdir()
    (folder / "usr/src/checkpatch/checkpatch.pl").write_text("perl")
    return folder


@pytest.fixture
def guest_tools(tmp_path: Path) -> Path:
    folder = tmp_path / "guest-tools"
    (folder / "driver").mkdir(parents=True)
    (folder / "programs/large").mkdir(parents=True)
    (folder / "driver/one.c").write_text("int one;\n")
    (folder / "driver/one.mod.c").write_text("left by a build\n")
    (folder / "driver/abi.h").write_text(GENERATED)
    (folder / "programs/large/two.c").write_text("int two;\n")
    (folder / "programs/notes.md").write_text("not C")
    return folder


def compiled(*lines: str, status: int = 0) -> Callable[[list[str]], Outcome]:
    """A make that says ``lines``, in which ``@`` is the folder it builds in."""

    def answer(program: list[str]) -> Outcome:
        (folder,) = (word.removeprefix("M=") for word in program if word.startswith("M="))
        return Outcome(status, "".join(line.replace("@", folder) + "\n" for line in lines))

    return answer


def test_releases_are_those_with_headers(root: Path) -> None:
    assert FakeRoot(root, compiled()).checks.releases == ["6.12-cloud", "7.3-cloud"]


def test_modules_without_a_complaint_were_compiled_with_all_warnings_for_that_kernel(
    root: Path, guest_tools: Path
) -> None:
    fake = FakeRoot(root, compiled("  CHECK   @/one.c", "  CC [M]  @/one.o"))

    assert fake.checks.modules(guest_tools / "driver", "6.12-cloud") == []

    (program,) = fake.programs
    assert {"W=1", "KCFLAGS=-Werror", "KBUILD_CHECKSRC=2", "/lib/modules/6.12-cloud/build"} <= set(program)
    assert list((root / "build").iterdir()) == []


@pytest.mark.parametrize("word", ["warning", "error"])
def test_line_of_compiler_or_sparse_is_a_complaint_without_the_build_folder(
    root: Path, guest_tools: Path, word: str
) -> None:
    fake = FakeRoot(root, compiled("  CHECK   @/one.c", f"@/one.c:1:1: {word}: bad", "make: *** Error 2", status=2))

    assert fake.checks.modules(guest_tools / "driver", "6.12-cloud") == [f"one.c:1:1: {word}: bad"]


def test_make_that_fails_without_a_complaint_is_quoted(root: Path, guest_tools: Path) -> None:
    fake = FakeRoot(root, compiled("make: no rule", status=2))

    said = fake.checks.modules(guest_tools / "driver", "6.12-cloud")

    assert said == ["make ended with status 2", "make: no rule"]


def test_file_that_sparse_did_not_see_is_a_complaint(root: Path, guest_tools: Path) -> None:
    (guest_tools / "driver/one.mod.c").unlink()
    fake = FakeRoot(root, compiled("  CC [M]  @/one.o"))

    assert fake.checks.modules(guest_tools / "driver", "6.12-cloud") == ["one.c: sparse was not run on it"]


def test_written_sources_are_neither_generated_nor_left_by_a_build(guest_tools: Path) -> None:
    names = [path.name for path in written_sources(guest_tools)]

    assert names == ["one.c", "two.c"]


def test_checkpatch_reads_driver_and_programs_each_by_the_rules_that_apply(root: Path, guest_tools: Path) -> None:
    fake = FakeRoot(root, lambda program: Outcome(0, ""))

    assert fake.checks.style(guest_tools) == []

    driver, programs = fake.programs
    assert (driver[-1], programs[-1]) == ("driver/one.c", "programs/large/two.c")
    assert "--strict" in driver
    assert "VOLATILE" not in driver[driver.index("--ignore") + 1]
    assert "VOLATILE" in programs[programs.index("--ignore") + 1]


def test_whatever_checkpatch_says_is_a_complaint(root: Path, guest_tools: Path) -> None:
    fake = FakeRoot(root, lambda program: Outcome(0, f"{program[-1]}:1: CHECK:X: y\n\n"))

    assert fake.checks.style(guest_tools) == ["driver/one.c:1: CHECK:X: y", "programs/large/two.c:1: CHECK:X: y"]


def test_checkpatch_that_fails_in_silence_is_a_complaint(root: Path, guest_tools: Path) -> None:
    fake = FakeRoot(root, lambda program: Outcome(9, ""))

    assert fake.checks.style(guest_tools) == ["checkpatch ended with status 9"] * 2


def progress() -> Progress:
    return Progress(io.StringIO(), 1)


def without_checkpatch(root: Path) -> Path:
    (root / "usr/src/checkpatch/checkpatch.pl").unlink()
    (root / "usr/src/checkpatch").rmdir()
    return root


def test_checkpatch_is_taken_out_of_the_source_once(root: Path) -> None:
    without_checkpatch(root)
    (root / "usr/src/linux-source-7.3.tar.xz").touch()

    def unpack(program: list[str]) -> Outcome:
        folder = root / program[program.index("-C") + 1].lstrip("/")
        for name in program[program.index("--occurrence=1") + 1 :]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        return Outcome(0, "")

    fake = FakeRoot(root, unpack)
    fake.checks.take_checkpatch(progress())
    fake.checks.take_checkpatch(progress())

    assert len(fake.programs) == 1
    kept = root / "usr/src/checkpatch"
    assert (kept / "checkpatch.pl").read_text() == "linux-source-7.3/scripts/checkpatch.pl"
    assert sorted(path.name for path in kept.iterdir()) == ["checkpatch.pl", "const_structs.checkpatch", "spelling.txt"]


def test_root_without_kernel_source_is_refused(root: Path) -> None:
    fake = FakeRoot(without_checkpatch(root), compiled())

    with pytest.raises(EnvironmentProblem, match="holds no kernel source; remove"):
        fake.checks.take_checkpatch(progress())


def test_source_that_cannot_be_read_is_refused_with_the_words_of_tar(root: Path) -> None:
    (without_checkpatch(root) / "usr/src/linux-source-7.3.tar.xz").touch()
    fake = FakeRoot(root, lambda program: Outcome(2, "tar: no scripts/checkpatch.pl\n"))

    with pytest.raises(EnvironmentProblem, match=r"linux-source-7\.3\.tar\.xz: tar: no scripts/checkpatch\.pl"):
        fake.checks.take_checkpatch(progress())


class Complaining(DriverChecks):
    """Checks whose complaints are given."""

    def __init__(self, root: Path, complaints: list[str]) -> None:
        super().__init__(root, Sandbox([]))
        self.complaints = complaints

    def modules(self, sources: Path, release: str) -> list[str]:
        self.ran += 1
        return self.complaints

    def style(self, guest_tools: Path) -> list[str]:
        self.ran += 1
        return []


@pytest.mark.parametrize(("complaints", "status"), [([], 0), (["one.c:1: warning: bad"], 1)])
def test_status_says_whether_anything_was_complained_about(root: Path, complaints: list[str], status: int) -> None:
    out = io.StringIO()

    assert driver_checks.main([], out=out, provide=lambda progress: Complaining(root, complaints)) == status

    said = out.getvalue().splitlines()
    assert said.count("one.c:1: warning: bad") == 2 * len(complaints)
    assert said[-1] == "checkpatch --strict: no complaints"


def test_what_has_not_changed_is_not_looked_at_again_unless_that_is_asked_for(
    root: Path, guest_tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(program: list[str]) -> Outcome:
        return compiled("  CHECK   @/one.c")(program) if "make" in program else Outcome(0, "")

    fake = FakeRoot(root, answer)
    monkeypatch.setattr("pviommu.resources.guest_tools", lambda: guest_tools)
    numbers, said = [], []
    for options in ([], [], ["--again"]):
        before, out = len(fake.programs), io.StringIO()
        assert driver_checks.main(options, out=out, provide=lambda progress: fake.checks) == 0
        numbers.append(len(fake.programs) - before)
        said.append(out.getvalue().count(": no complaints (known, nothing has changed)\n"))

    # two kernels and the two kinds of source that checkpatch reads
    assert (numbers, said) == ([4, 0, 4], [0, 3, 0])
    (guest_tools / "driver/one.c").write_text("int changed;\n")
    assert fake.checks.style(guest_tools) == []
    assert len(fake.programs) == 9


def test_only_setup_checks_nothing(root: Path) -> None:
    out = io.StringIO()

    status = driver_checks.main(["--only-setup"], out=out, provide=lambda progress: Complaining(root, ["bad"]))

    assert (status, out.getvalue()) == (0, "")


def test_host_that_lacks_something_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def provide(progress: Progress) -> DriverChecks:
        raise EnvironmentProblem("apt is missing", "install it")

    assert driver_checks.main([], out=io.StringIO(), provide=provide) == 3

    assert capsys.readouterr().err == "driver-check: apt is missing; install it\n"
