"""Sweeps over a real guest: what the guest is given to do, what counts as a failure, when another guest is booted."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pviommu.cli import main
from pviommu.control.client import ConnectionLostError
from pviommu.control.description import CommandError
from pviommu.faults.catalogue import Nature, places
from pviommu.lab.listener import Listener
from pviommu.lab.problems import RunError
from pviommu.lab.report import RunRecord
from pviommu.lab.vm import GuestTimeoutError
from pviommu.reports.ktap import KtapParser, KtapRun, Outcome
from pviommu.scenarios import guest_sweep, sweep
from pviommu.scenarios.cases import Case, Passes, cases
from pviommu.scenarios.guest_sweep import GuestSweep
from pviommu.scenarios.sweep import Result

if TYPE_CHECKING:
    from conftest import Lab

CONTROL = Path("/control")
GUEST = r"""printf 'KTAP version 1\nok 1 bind\n' >&3
number=1
ask() {{ printf '# lab: request %s\n' "$1" >&3; read -r answer <&3; [[ $answer = "done $1" ]]; }}
while ask case; do
    number=$((number + 1))
    printf '  KTAP version 1\n  1..2\n  ok 1 DMA\n' >&3
    {during}
    ask rules-unload
    printf '  ok 2 calm\nok %d case %d\n' $number $((number - 1)) >&3
done
printf '1..%d\n# lab: exit 0\n' $number >&3"""


class Server:
    """Takes the place of the server's control socket: its guest passes two places, and each rule acts."""

    def __init__(self) -> None:
        self.passed = {"op.map_pages.apply": 4, "op.alloc_context.pre": 2}
        self.loaded: list[list[str]] = []
        self.where: dict[str, Any] = {}
        self.fires = True
        self.gone = False
        self.refuses = ""
        """the id of a rule that is not taken"""
        self._rules: Sequence[dict[str, Any]] = ()

    def connect(self, path: Path, timeout_s: float) -> Server:
        if self.gone:
            raise ConnectionLostError(f"{path}: the server hung up")
        return self

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *unused: object) -> None:
        pass

    def call(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if name == "rules-load":
            if any(rule["id"] == self.refuses for rule in arguments["scenario"]["rule"]):
                raise CommandError(f"scenario: {self.refuses} is too much")
            self._rules = arguments["scenario"]["rule"]
            self.loaded.append([rule["id"] for rule in self._rules])
            self.where |= {rule["id"]: rule.get("where") for rule in self._rules}
            return {"loaded": len(self._rules)}
        rules = [self._rule(rule) for rule in self._rules]
        return {"ok": True, "seed": 0, "state": "", "events": 0, "problems": [], "rules": rules}

    def _rule(self, rule: dict[str, Any]) -> dict[str, Any]:
        passed = self.passed.get(rule["on"], 0)
        fired = passed if not rule.get("do") else int(self.fires and bool(passed))
        return {
            "id": rule["id"],
            "class": "conforming",
            "on": rule["on"],
            "passed": passed,
            "fired": fired,
            "expected": "",
        }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(guest_sweep, "Client", made.connect)
    return made


class Swept:
    """A sweep whose guests are functions of the test; ``begin`` chooses all cases of the places that are passed."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.folder = folder
        self.results: list[Result] = []
        self.passed: list[Passes] = []
        self.sweep = GuestSweep(self._begin, self.results.append, 60.0, lambda: self.now)
        self._requests = self.sweep.requests(CONTROL)

    def _begin(self, passed: Passes) -> list[Case]:
        self.passed.append(passed)
        return list(cases(passed))

    def ask(self, name: str) -> str | None:
        return self._requests[name]()

    def boot(self, guest: Callable[[Listener], Sequence[str]], verdict: str = "passed") -> None:
        """``guest`` says what is wrong with the run."""

        def run(listener: Listener) -> RunRecord:
            try:
                problems = list(guest(listener))
            finally:
                self.sweep.finish(CONTROL)
            return RunRecord(verdict, KtapRun([], []), problems, 1.0, {})

        self.sweep.boot(self.folder, run)

    def work(self, listener: Listener, *wrong: str, most: int = 1000) -> list[str]:
        """A guest that does ``most`` cases; in cases of these names its DMA does not work."""
        listener.line("KTAP version 1")
        for number in range(1, most + 1):
            if self.ask("case") is not None:
                break
            self.case(listener, number, is_wrong=self.current in wrong)
        return []

    @property
    def current(self) -> str:
        current = self.sweep._current
        return current.rule.id if isinstance(current, Case) else "counting"

    def case(self, listener: Listener, number: int, *, is_wrong: bool = False, unload: bool = True) -> None:
        for line in ("KTAP version 1", "1..1", *(["# 3 bytes are wrong"] if is_wrong else [])):
            listener.line(f"  {line}")
        if unload:
            assert self.ask("rules-unload") is None
        mark = "not ok" if is_wrong else "ok"
        listener.line(f"  {mark} 1 DMA")
        listener.line(f"{mark} {number} case {number}")


@pytest.fixture
def swept(server: Server, tmp_path: Path) -> Swept:
    return Swept(tmp_path)


def test_a_guest_first_shows_what_it_passes_and_then_does_one_case_after_the_other(
    swept: Swept, server: Server
) -> None:
    swept.boot(swept.work)
    assert swept.sweep.is_over
    assert swept.passed == [server.passed]
    counted, *tried = server.loaded
    others = ("message.", "socket.", "smmu.", "iommufd.")
    assert counted == [place.name for place in places("*") if not place.name.startswith(others)]
    assert [ids[-1] for ids in tried] == [result.case.rule.id for result in swept.results]
    assert [result.case.number for result in swept.results] == list(range(1, len(tried) + 1))
    assert len(tried) == 5
    assert {result.test(1).outcome for result in swept.results} == {Outcome.PASSED}


def test_maps_that_fail_for_want_of_memory_have_none_reserved_and_partial_ones_pages_enough(
    swept: Swept, server: Server
) -> None:
    swept.boot(swept.work)
    several = [ids for ids in server.loaded[1:] if len(ids) > 1]
    assert several == [["no-pages-in-advance", "op.map_pages.apply-partial-enomem-1"]]
    assert server.where["op.map_pages.apply-partial-enomem-1"] == {"nr": "2.."}
    [result] = [result for result in swept.results if result.case.before]
    assert 'id = "no-pages-in-advance"' in "\n".join(Result(result.case, True, ("x",)).test(1).diagnostics)


def test_a_rule_that_met_nothing_is_skipped(swept: Swept, server: Server) -> None:
    server.fires = False
    swept.boot(swept.work)
    assert {result.test(1).directive for result in swept.results} == {"SKIP"}


def test_a_case_that_fails_is_told_and_another_guest_goes_on_with_the_next(swept: Swept, server: Server) -> None:
    wrong = "op.alloc_context.pre-fail-enospc-1"
    swept.boot(lambda listener: swept.work(listener, wrong))
    assert not swept.sweep.is_over
    assert [result.case.rule.id for result in swept.results if result.failures] == [wrong]
    assert swept.results[-1].failures == ("DMA: 3 bytes are wrong", f"its guest: {swept.folder}")
    begun = len(server.loaded)

    swept.boot(swept.work)
    assert swept.sweep.is_over
    assert [result.case.number for result in swept.results] == [1, 2, 3, 4, 5]
    assert len(server.loaded) == begun + 5 - swept.results[1].case.number


def test_a_guest_that_dies_fails_its_case_and_says_how_far_it_came(swept: Swept) -> None:
    def dies(listener: Listener) -> list[str]:
        swept.work(listener, most=2)  # counts, does one case
        assert swept.ask("case") is None
        listener.line("  ok 1 DMA of an engine")
        (swept.folder / "console.log").write_text("\n".join(f"line {number}" for number in range(99)) + "\nOops\n")
        return ["the guest ended early"]

    swept.boot(dies, "failed")
    first, second = swept.results
    assert first.failures == ()
    gone, far, *console, where = second.failures
    assert gone == "the guest is gone: the guest ended early"
    assert far == "it came as far as: DMA of an engine"
    assert console[-1] == "console: Oops"
    assert len(console) == 12
    assert where == f"its guest: {swept.folder}"
    swept.boot(swept.work)
    assert swept.sweep.is_over
    assert len(swept.results) == 5


def test_a_guest_that_takes_too_long_is_ended(swept: Swept) -> None:
    class Pending:
        due: float | None = None
        rung = 0

        def ring(self) -> None:
            self.rung += 1

    pending = Pending()
    alarm = swept.sweep.alarm(pending)

    def hangs(listener: Listener) -> list[str]:
        assert alarm.due == 300.0  # to boot
        swept.now = 100.0
        swept.work(listener, most=1)
        assert swept.ask("case") is None
        assert alarm.due == 160.0
        pending.due = 120.0
        assert alarm.due == 120.0
        swept.now = 120.0
        alarm.ring()
        assert pending.rung == 1
        swept.now = 160.0
        with pytest.raises(GuestTimeoutError, match="the guest did not come to the end of a case within 60 s"):
            alarm.ring()
        return ["too late"]

    swept.boot(hangs, "timeout")
    assert swept.results[0].failures[0] == "too late"
    assert not swept.sweep.is_over


def test_a_guest_that_does_not_work_without_rules_is_no_result(swept: Swept) -> None:
    with pytest.raises(RunError, match=r"fails though no rule does anything: DMA: 3 bytes are wrong; see "):
        swept.boot(lambda listener: swept.work(listener, "counting"))


def test_a_guest_that_comes_to_no_case_is_not_booted_again(swept: Swept) -> None:
    with pytest.raises(RunError, match="came to no case: no such device; see "):
        swept.boot(lambda listener: ["no such device"])


@pytest.mark.parametrize(
    ("refused", "what"),
    [
        ("op.alloc_context.pre-fail-enospc-1", "case op.alloc_context.pre fail ENOSPC at pass 1"),
        ("op.map_pages.apply", "the scenario that counts passes"),
    ],
)
def test_rules_that_the_server_refuses_are_no_fault_of_the_guest(
    swept: Swept, server: Server, refused: str, what: str
) -> None:
    server.refuses = refused
    why = f"{what} cannot be loaded: scenario: {refused} is too much; see {swept.folder}"
    with pytest.raises(RunError, match=re.escape(why)):
        swept.boot(swept.work)
    assert [result for result in swept.results if result.failures] == []


def test_a_server_that_does_not_take_the_rules_of_a_case_fails_it_with_the_reason(swept: Swept, server: Server) -> None:
    def hangs_up(listener: Listener) -> list[str]:
        swept.work(listener, most=1)
        server.gone = True
        assert swept.ask("case") == "/control: the server hung up"
        return []

    swept.boot(hangs_up)
    assert swept.results[0].failures[0] == "/control: the server hung up"


def test_a_server_that_is_gone_fails_the_case(swept: Swept, server: Server) -> None:
    def killed(listener: Listener) -> list[str]:
        swept.work(listener, most=1)
        assert swept.ask("case") is None
        server.gone = True
        assert swept.ask("rules-unload") == "/control: the server hung up"
        swept.case(listener, 2, unload=False)
        return []

    swept.boot(killed)
    assert swept.results[0].failures[0] == "nobody knows what its rule did: the server did not answer"


def test_an_exception_that_the_server_survives_fails_the_case_unless_a_rule_raised_it(swept: Swept) -> None:
    log = swept.folder / "server.jsonl"
    raised = "Traceback (most recent call last):\n  File x\n{}\n"

    def logs(listener: Listener) -> list[str]:
        swept.work(listener, most=1)
        for number, text in enumerate(("pviommu.faults.points.reports.WorkError: FAILED", "ZeroDivisionError: by 0")):
            assert swept.ask("case") is None
            with log.open("a") as file:
                print(json.dumps({"message": "dma0: failed", "traceback": raised.format(text)}), file=file)
                print('{"message": "half', file=file, end="")  # still being written
            swept.case(listener, 2 + number)
            with log.open("a") as file:
                print(' a line"}', file=file)
        return []

    swept.boot(logs)
    by_rule, own = swept.results
    assert by_rule.failures == ()
    assert own.failures[0] == "an exception in the server: dma0: failed: ZeroDivisionError: by 0"


# -- the command ---------------------------------------------------------------------------------------------------


def arguments(folder: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sweep.add_arguments(parser)
    given = [
        "--workload",
        "lab",
        "--results",
        str(folder / "lab-results"),
        "--case-timeout",
        "30",
        "--kernel",
        "debian",
    ]
    return parser.parse_args([*given, "--mode", "lazy", "--profile", "xen-2024", *words])


def run(lab: Lab, *words: str, during: str = ":") -> int:
    lab.guest = GUEST.format(during=during)
    return guest_sweep.guest_swept(arguments(lab.folder, *words), program=lab.programs(), provide=lab.provide)


def test_a_sweep_is_one_boot_and_a_ktap_line_for_each_case(
    lab: Lab, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lab) == 0
    said = capsys.readouterr()
    parser = KtapParser()
    for line in said.out.splitlines():
        parser.feed(line)
    report = parser.finish()
    assert report.problems == []
    assert report.tests[0].name == "op.alloc_context.pre fail ENOMEM at pass 1"
    assert report.counts().passed == 5
    assert "# workload lab passes 2 of " in said.out
    assert "pviommu: boot 1 of a guest\n" in said.err
    assert "boot 2" not in said.err
    [folder] = [path for path in (lab.folder / "lab-results").iterdir() if not path.is_symlink()]
    assert json.loads((folder / "results.json").read_text())["verdict"] == "passed"


def test_a_guest_that_ends_in_a_case_has_its_console_kept_and_the_rest_done(
    lab: Lab, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = lab.folder / "dead"
    during = f"[[ $number = 3 && ! -e {dead} ]] && touch {dead} && exit 0"
    assert run(lab, "--json", during=during) == 1
    said = capsys.readouterr()
    results = json.loads(said.out)["results"]
    assert [result["result"] for result in results] == ["failed", "passed", "passed", "passed", "passed"]
    assert "boot 2 of a guest" in said.err
    [where] = [text for text in results[0]["failures"] if text.startswith("its guest: ")]
    assert (Path(where.removeprefix("its guest: ")) / "console.log").read_text() == "booted\n"


def test_shards_of_a_guest_have_every_case_once(lab: Lab, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for part in (1, 2):
        assert run(lab, "--json", "--quiet", "--shard", f"{part}/2") == 0
        found += [result["number"] for result in json.loads(capsys.readouterr().out)["results"]]
    assert sorted(found) == [1, 2, 3, 4, 5]


def test_places_that_the_guest_does_not_pass_are_no_cases(
    lab: Lab, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lab, "--only", "socket.*") == 5
    assert "workload lab passes no such place so often: there is no case" in capsys.readouterr().err


def test_without_a_guest_there_is_a_status_of_its_own(
    lab: Lab, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lab, during="exit 0") == 3
    assert "the guest fails though no rule does anything: the guest is gone: " in capsys.readouterr().err
    assert run(lab, during=r"printf '  not ok 2 memory\nnot ok 2 case 1\n' >&3; exit 0") == 3
    assert "the guest fails though no rule does anything: memory" in capsys.readouterr().err


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_a_sweep_that_ends_early_tells_what_came_of_the_cases_before(
    lab: Lab, server: Server, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    server.refuses = "op.alloc_context.pre-fail-enospc-1"
    assert run(lab, *words) == 3
    said = capsys.readouterr()
    assert "case op.alloc_context.pre fail ENOSPC at pass 1 cannot be loaded: " in said.err
    if words:
        document = json.loads(said.out)
        assert (document["cases"], document["counts"]["passed"], len(document["results"])) == (5, 1, 1)
    else:
        assert "\n1..5\nok 1 op.alloc_context.pre fail ENOMEM at pass 1\n# workload lab passes 2 of " in said.out


def test_no_guest_is_booted_for_nothing_after_the_last_case(
    lab: Lab, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lab, "--only", "op.alloc_context", "--shard", "4/4", during="[[ $number = 3 ]] && exit 0") == 1
    said = capsys.readouterr()
    assert "\nnot ok 1 op.alloc_context.pre reorder 1 at pass 1\n" in said.out
    assert "boot 2" not in said.err


def test_adversarial_cases_are_asked_for(lab: Lab, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lab, "--adversarial", "--only", "op.alloc_context", "--json") == 0
    tried = json.loads(capsys.readouterr().out)["results"]
    assert {result["class"] for result in tried} == {nature.value for nature in Nature}
    assert any(" reset at pass " in result["words"] for result in tried)
    assert not any(" disconnect " in result["words"] for result in tried)  # QEMU never comes again


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workload", "lab", "--minimise", "x.toml"], "--minimise plays without a virtual machine"),
        (["--results", "x"], "--results goes with --workload lab"),
        (["--case-timeout", "5", "--workload", "wire"], "--case-timeout goes with --workload lab"),
        (["--kernel", "debian"], "--kernel goes with --workload lab"),
        (["--mode", "strict"], "--mode goes with --workload lab"),
        (["--profile", "xen-v7"], "--profile goes with --workload lab"),
        (["--workload", "lab", "--case-timeout", "0"], "'0': must be a number of seconds above 0"),
        (["--workload", "lab", "--case-timeout", "inf"], "'inf': must be a number of seconds above 0"),
        (["--workload", "lab", "--mode", "passthrough"], "invalid choice: 'passthrough'"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["faults", "sweep", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
