"""What the commands answer."""

import dataclasses
import logging
import os
import time

import pytest

from pviommu.control import prometheus
from pviommu.control.answers import TRACED
from pviommu.control.commands import COMMANDS
from pviommu.control.description import Command, CommandError
from pviommu.counters import Counters
from pviommu.dma.fault import DmaRefusedError
from pviommu.engine import Access
from pviommu.process import logs

from .conftest import Asked

BOTH = Access.READ | Access.WRITE


def refused(driver, iova, name="dma0"):
    with pytest.raises(DmaRefusedError):
        driver.dma_write(name, iova, b"x")


def test_status_tells_of_functions_and_rings(driver, ask):
    driver.attached()
    said = ask("status")

    assert said["contexts"] == 1
    assert said["history"] == 1000
    assert said["functions"][0] == {
        "name": "iommu",
        "kind": "iommu",
        "client": "process 7 of user 0",
        "bus_master": False,
    }
    assert [each["bus_master"] for each in said["functions"]] == [False, True, False]
    assert said["rings"][0] == {"ring": 0, "entries": 256, "completed": 3, "pending": 0, "broken": False}


def test_contexts_tell_who_is_inside(driver, ask):
    ctx = driver.attached()
    driver.map(ctx, 0x10, 0x100, 5)
    driver.alloc(flags=1)

    assert ask("contexts") == {
        "contexts": [
            {"context": 0, "kind": "identity", "pages": 0, "direct": 0, "streams": [2]},
            {"context": 1, "kind": "paging", "pages": 5, "direct": 0, "streams": [1]},
            {"context": 2, "kind": "clone", "pages": 0x1000, "direct": 0, "streams": []},
        ],
        "next": None,
    }


def test_contexts_come_in_pages(driver, ask):
    for _ in range(5):
        driver.alloc()

    first = ask("contexts", limit=4)
    assert ([each["context"] for each in first["contexts"]], first["next"]) == ([0, 1, 2, 3], 4)
    rest = ask("contexts", limit=4, first=4)
    assert ([each["context"] for each in rest["contexts"]], rest["next"]) == ([4, 5], None)


def test_a_dump_has_the_areas_that_map_calls_made(driver, ask):
    ctx = driver.alloc()[1]
    driver.map(ctx, 0x10, 0x100, 3)
    driver.map(ctx, 0x13, 0x103, 2)
    driver.map(ctx, 0x400, 0x200, 0x400, 1)

    said = ask("dump", context=ctx)
    assert said["areas"] == [
        {"dfn": 0x10, "pages": 3, "gfn": 0x100, "access": "READ|WRITE"},
        {"dfn": 0x13, "pages": 2, "gfn": 0x103, "access": "READ|WRITE"},
        {"dfn": 0x400, "pages": 0x400, "gfn": 0x200, "access": "READ"},
    ]
    assert (said["kind"], said["next"], said["direct"]) == ("paging", None, [])


def test_a_dump_of_the_default_context_has_guest_ram(ask):
    assert ask("dump", context=0)["areas"] == [{"dfn": 0, "pages": 0x1000, "gfn": 0, "access": "READ|WRITE"}]


def test_a_long_dump_comes_in_pages_and_steps(driver, ask):
    ctx = driver.alloc()[1]
    for place in range(700):
        driver.iommu.engine.map(ctx, 2 * place, place, 1, BOTH)

    areas, first = [], 0
    while first is not None:
        said = ask("dump", context=ctx, first=first, limit=300)
        assert len(said["areas"]) <= 300
        areas += said["areas"]
        first = said["next"]
    assert [area["dfn"] for area in areas] == [2 * place for place in range(700)]
    assert ask("dump", context=ctx, limit=1024)["next"] is None
    assert ask.steps >= 2


def test_one_mapping_in_very_many_pieces_takes_many_steps_and_several_replies(make_driver, history):
    driver = make_driver(pool_pages=4096).start()
    ask, engine = Asked(driver, history), driver.iommu.engine
    engine.set_ram([(0, 1 << 19)])
    ctx = driver.alloc()[1]
    assert engine.map(ctx, 1, 0, 70_000, BOTH).ok  # unaligned: a leaf each

    said, pages = ask("dump", context=ctx), 0
    assert ask.steps == 256
    while said["next"] is not None:
        pages += sum(area["pages"] for area in said["areas"])
        said = ask("dump", context=ctx, first=said["next"])
    assert pages + sum(area["pages"] for area in said["areas"]) == 70_000


def test_a_context_that_is_freed_during_its_dump_is_told(driver, ask):
    ctx = driver.alloc()[1]
    for place in range(600):
        driver.iommu.engine.map(ctx, 2 * place, place, 1, BOTH)
    steps = ask.answers.begin("dump", {"context": ctx, "limit": 1000})
    next(steps)
    driver.free(ctx)

    with pytest.raises(CommandError, match="the context was freed meanwhile"):
        next(steps)


_NO_PASID = "explain: pasid 5: only DMA of a stream behind an SMMU has one"


@pytest.mark.parametrize(
    ("name", "arguments", "text", "kind"),
    [
        ("dump", {"context": 9}, "there is no context 9", "DeviceNotFound"),
        ("explain", {"iova": 0, "stream": 9}, "there is no stream 9; there are 1, 2", "DeviceNotFound"),
        ("explain", {"iova": 0, "stream": 1, "pasid": 5}, _NO_PASID, "GenericError"),
        ("explain", {"iova": 0}, "explain: give either a context or a stream", "GenericError"),
        ("reset", {"function": "nic"}, "there is no function 'nic'; there are iommu, dma0, dma1", "DeviceNotFound"),
    ],
)
def test_what_is_not_there_is_named(ask, name, arguments, text, kind):
    with pytest.raises(CommandError) as error:
        ask(name, **arguments)

    assert (str(error.value), error.value.kind) == (text, kind)


def test_an_unknown_command_is_refused_with_those_that_there_are(ask):
    with pytest.raises(
        CommandError, match=r"there is no command 'dumb'; there are version, commands, .*, quit"
    ) as error:
        ask("dumb")

    assert error.value.kind == "CommandNotFound"


def test_endpoints_tell_their_place(driver, ask):
    ctx = driver.attached("dma1")

    rows = [list(row.values()) for row in ask("endpoints")["endpoints"]]
    assert rows == [
        [1, "dma0", "dma-test", "unbound", 0, False, False],
        [2, "dma1", "dma-test", "0000:00:06.0", ctx, False, False],
    ]


def test_statistics_are_the_counters(driver, ask):
    ctx = driver.alloc()[1]
    driver.map(ctx, 0x10, 0x100, 3)

    said = ask("statistics")["statistics"]
    assert (said["ops"], said["pages_mapped"], said["mapped_pages"]) == ({"alloc_context": 1, "map_pages": 1}, 3, 3)


def test_prometheus_gets_help_type_and_value_of_each(driver, ask):
    driver.alloc()
    text = ask("statistics", format="prometheus")["text"]

    assert text.startswith(
        "# HELP pviommu_ops_total operations executed, failed ones too\n# TYPE pviommu_ops_total counter"
    )
    assert '\npviommu_ops_total{operation="alloc_context"} 1\n' in text
    assert "\n# TYPE pviommu_contexts gauge\npviommu_contexts 1\n" in text


def test_prometheus_has_help_for_every_counter():
    assert {field.name for field in dataclasses.fields(Counters)} <= set(prometheus.HELP)


def test_faults_come_with_their_explanations(driver, ask):
    driver.attached()
    for page in range(3):
        refused(driver, page << 12)

    said = ask("faults", limit=2)
    assert [fault["iova"] for fault in said["faults"]] == [0, 0x1000]
    assert (said["count"], said["next"], said["unexplained"]) == (3, 3, 0)
    assert ask("faults", first=3)["faults"][0]["explanation"]["cause"] == "never-mapped"


def test_explain_tells_what_is_there_and_why_the_last_dma_was_refused(driver, ask):
    ctx = driver.attached()
    driver.map(ctx, 0x10, 0x100, 1)
    driver.unmap(ctx, 0x10, 1)
    refused(driver, 0x10008)
    driver.map(ctx, 0x10, 0x180, 1)

    said = ask("explain", iova=0x10000, stream=1)
    assert said["cause"] == "unmapped"
    assert said["text"].startswith(f"use after unmap: context {ctx} had it until ")
    assert said["now"] == {"state": "mapped", "gfn": 0x180, "access": "READ|WRITE"}
    assert said["fault"]["iova"] == 0x10008
    assert [each["operation"] for each in said["operations"]] == ["map", "unmap", "map"]
    assert ask("explain", iova=0x10000, context=ctx)["text"] == said["text"]


def test_explain_finds_a_map_that_came_too_late(driver, ask):
    ctx = driver.attached()
    refused(driver, 0x10000)
    driver.map(ctx, 0x10, 0x100, 1)

    said = ask("explain", iova=0x10000, stream=1)
    assert said["cause"] == "mapped-later"
    assert said["text"].startswith("its map came ")


def test_explain_of_what_was_never_refused_tells_what_is_there(driver, ask):
    ctx = driver.attached()
    driver.map(ctx, 0x10, 0x100, 1)

    said = ask("explain", iova="0x10000", context=ctx)
    assert (said["cause"], said["fault"]) == ("not-refused", None)
    assert said["text"] == "it is mapped: gfn 0x100, for READ|WRITE"


def test_operations_come_in_order_and_pages(driver, ask, history):
    ctx = driver.attached()
    driver.map(ctx, 0x10, 0x100, 1)

    said = ask("operations", limit=2)
    assert [each["number"] for each in said["operations"]] == [0, 1]
    rest = ask("operations", first=said["next"])
    assert rest["next"] is None
    assert rest["operations"][-1]["operation"] == "map"
    assert rest["operations"][-1]["ring"] == 0
    assert rest["operations"][-1]["number"] == history.count - 1
    assert ask("operations", first=99999)["operations"] == []


def test_operations_that_are_gone_are_passed_over(driver, ask, history):
    ctx = driver.alloc()[1]
    for place in range(1100):
        driver.iommu.engine.map(ctx, place, place, 1, BOTH)

    said = ask("operations", first=5, limit=512)
    assert said["operations"][0]["number"] == history.count - 1000
    assert ask.steps == 8


def test_without_a_history_operations_are_refused(ask_without):
    with pytest.raises(CommandError, match="no history is kept: start the server with --history N"):
        ask_without("operations")


def test_trace_turns_the_log_of_messages_on_and_off(ask):
    assert not TRACED.isEnabledFor(logging.DEBUG)
    try:
        assert ask("trace", state="on") == {"trace": True}
        assert TRACED.isEnabledFor(logging.DEBUG)
    finally:
        assert ask("trace", state="off") == {"trace": False}


def test_reset_resets_a_function(driver, ask):
    driver.attached()
    ask("reset", function="iommu")

    assert ask("status")["contexts"] == 0
    assert ask("endpoints")["endpoints"][0]["blocked"]


def test_a_snapshot_waits_for_what_is_not_done_yet(driver, ask, tmp_path):
    busy = [CommandError("not yet")] * 3

    def save():
        if busy:
            raise busy.pop()
        return b"all of it"

    ask.served.save = save
    assert ask("snapshot", file=str(tmp_path / "saved")) == {"bytes": 9}
    assert (tmp_path / "saved").read_bytes() == b"all of it"
    assert ask.steps >= 3


def test_a_snapshot_does_not_wait_for_ever(driver, ask, tmp_path):
    def save():
        driver.inputs.time += 500_000_000
        raise CommandError("not yet")

    ask.served.save = save
    with pytest.raises(CommandError, match="not yet"):
        ask("snapshot", file=str(tmp_path / "saved"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["snapshot", "restore"])
def test_where_a_snapshot_would_lack_something_there_is_none(ask, tmp_path, name):
    ask.served.no_snapshots = "with --transport other it has no interrupts"
    with pytest.raises(CommandError, match=r"^no snapshots here: with --transport other it has no interrupts$"):
        ask(name, file=str(tmp_path / "saved"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_restored_is_what_the_file_has(ask, tmp_path):
    loaded = []
    ask.served.load = loaded.append
    (tmp_path / "saved").write_bytes(b"all of it")
    ask("restore", file=str(tmp_path / "saved"))

    assert loaded == [b"all of it"]


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("restore", "missing", "/missing: No such file or directory"),
        ("restore", ".", "/.: no regular file, or too large for a snapshot"),
        ("snapshot", "missing/saved", "/missing/saved: No such file or directory"),
    ],
)
def test_files_that_cannot_be_are_told(ask, tmp_path, name, file, text):
    with pytest.raises(CommandError) as error:
        ask(name, file=f"{tmp_path}/{file}")

    assert str(error.value) == f"{tmp_path}{text}"


def test_a_snapshot_replaces_no_device(ask, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    ask.served.save = lambda: b"all of it"

    with pytest.raises(CommandError, match="/fifo: no regular file"):
        ask("snapshot", file=str(tmp_path / "fifo"))

    assert (tmp_path / "fifo").is_fifo()


def test_a_path_begins_at_the_root(ask):
    with pytest.raises(CommandError, match="snapshot: file 'saved': must be a path from the root on"):
        ask("snapshot", file="saved")


def test_quit_stops_the_server(ask):
    assert ask("quit") == {}
    assert ask.stopped


def test_every_answer_has_what_its_description_says(driver, ask, tmp_path):
    driver.attached()
    refused(driver, 0)
    arguments = {
        "dump": {"context": 0},
        "explain": {"iova": 0, "stream": 1},
        "trace": {"state": "off"},
        "reset": {"function": "dma1"},
        "snapshot": {"file": f"{tmp_path}/saved"},
        "restore": {"file": f"{tmp_path}/saved"},
        "rules-load": {"scenario": {"version": 1, "rule": [{"id": "seen", "on": "reset.post"}]}},
        "resume": {"tag": "late"},
    }
    for command in COMMANDS:
        if command.name in ("link", "mac"):  # of machines with network cards: see test_links.py
            continue
        if command.name == "resume":
            ask.rules.holds.suspend("late")
        said = ask(command.name, **arguments.get(command.name, {}))
        if command.name != "statistics":  # which gives one of two
            assert set(said) == {field.name for field in command.result}, command.name
        for field in command.result:
            rows = (said.get(field.name) or []) if field.fields and command.name != "commands" else []
            for row in [rows] if isinstance(rows, dict) else rows:
                assert set(row) <= {inner.name for inner in field.fields}, (command.name, field.name)


def test_what_was_logged_under_rules_is_written_before_the_answer_that_they_are_gone(ask, tmp_path, monkeypatch):
    real = os.write

    def slow(fd, data):
        time.sleep(0.05)
        return real(fd, data)

    monkeypatch.setattr(os, "write", slow)
    with logs.writing("info", "json", tmp_path / "log"):
        logging.getLogger("x").error("failed")
        ask("rules-unload")
        assert '"message": "failed"' in (tmp_path / "log").read_text()


def test_a_command_can_be_added_and_not_twice(ask):
    ask.answers.add(Command("wave", "wave back"), lambda: {"hello": 1})

    assert ask("wave") == {"hello": 1}
    assert ask("commands")["commands"][-1]["name"] == "wave"
    with pytest.raises(ValueError, match="there is a command wave already"):
        ask.answers.add(Command("wave", "wave back"), dict)


@pytest.mark.row("tables", 17)
def test_a_context_with_tables_of_the_guest_is_dumped_by_walking_them(driver, ask, make_guest):
    guest = make_guest()
    for dfn, gfn in ((3, 9), (4, 10), (5, 11), (7, 9)):
        guest.tables.map(dfn << 12, gfn << 12)
    guest.tables.map(1 << 30, 0, shift=30)
    [_, said] = ask("contexts")["contexts"]
    assert (said["context"], said["kind"], said["pages"]) == (guest.ctx, "tables", 0)
    said, areas = {"next": 0}, []
    while said["next"] is not None:
        said = ask("dump", context=guest.ctx, first=said["next"], limit=2)
        areas += [(area["dfn"], area["pages"], area["gfn"]) for area in said["areas"]]
    assert said["kind"] == "tables"
    assert areas == [(3, 3, 9), (7, 1, 9), (1 << 18, 1 << 18, 0)]


def test_such_a_context_that_is_freed_during_its_dump_is_told(driver, ask, make_guest):
    guest = make_guest()
    for dfn in range(64):  # more than one step looks at
        guest.tables.map(dfn << 12, dfn << 12)
    steps = ask.answers.begin("dump", {"context": guest.ctx, "limit": 1000})
    next(steps)
    driver.iommu.contexts.free(guest.ctx, reattach=True)
    with pytest.raises(CommandError, match="the context was freed meanwhile"):
        list(steps)
