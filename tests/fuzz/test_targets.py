"""Each target, in this process, with each input of its corpus; and that the targets notice what they are there for."""

import gc
import importlib
import logging
import os

import pytest

from pviommu.engine import Access, Engine, EngineConfig
from vfio_user import Command
from vfio_user.messages import GetInfo

from . import run, seeds
from .feed import Feed
from .machine import Talk, check_engine, nothing_raised, small_machine


@pytest.fixture(autouse=True)
def _no_collection():
    """Files that garbage of other tests holds open are not closed while a target counts its own."""
    gc.disable()
    yield
    gc.enable()


INPUTS = [(name, file) for name in run.NAMES for file in run.seeds_of(name)]


def target_of(name):
    return importlib.import_module(f"{__package__}.{name}").target


@pytest.mark.parametrize(("name", "file"), INPUTS, ids=lambda value: getattr(value, "name", value))
def test_an_input_of_the_corpus_shows_no_defect(name, file):
    target_of(name)(file.read_bytes())


@pytest.mark.parametrize("name", run.NAMES)
def test_a_target_bears_no_input_and_noise(name):
    target_of(name)(b"")
    target_of(name)(bytes(range(256)))


@pytest.mark.parametrize("name", run.NAMES)
def test_the_seeds_in_the_corpus_are_those_that_are_declared(name):
    found = {file.name: file.read_bytes() for file in run.seeds_of(name)}

    assert seeds.seeds(name).items() <= found.items(), "run: python -m tests.fuzz.seeds"


def test_the_corpus_is_small():
    assert sum(file.stat().st_size for _, file in INPUTS) < 64 << 10


def test_a_file_is_run_as_a_reproducer(capsys):
    file = run.CORPUS / "rings" / "map-dma-unmap"

    assert run.main(["rings", str(file)]) == 0
    assert f"{file}: nothing found" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rings", "smmu", "tables", "vfio", "virtio"])
def test_every_step_is_taken_by_some_input(name):
    steps = importlib.import_module(f"{__package__}.{name}").STEP

    taken = {byte for owner, file in INPUTS if owner == name for byte in file.read_bytes()[2:]}
    assert set(steps.values()) <= taken


# -- the checks can fail ----------------------------------------------------------------------------------------------


def test_an_exception_that_was_answered_is_noticed():
    def ask_what_fails():
        with small_machine() as machine:
            machine.iommu.check_client = None
            talk = Talk(machine.iommu)
            assert talk.request(Command.DEVICE_GET_INFO, GetInfo(GetInfo.SIZE, 0, 0, 0).pack()) is None

    with pytest.raises(AssertionError, match="raised inside: the device failed"):
        ask_what_fails()


def test_errors_without_an_exception_are_none_of_its_business():
    with nothing_raised():
        logging.getLogger("pviommu").error("refused")


def test_a_leaked_descriptor_is_noticed():
    leaked = []
    with pytest.raises(AssertionError, match="1 descriptors leaked"):
        with small_machine():
            leaked.append(os.eventfd(0))
    os.close(leaked.pop())


@pytest.fixture
def engine():
    """An engine with one context, one mapping, and its translation in the IOTLB."""
    made = Engine(EngineConfig(pool_pages=16))
    made.set_ram([(0, 15)])
    made.add_endpoint(1)
    context = 1
    made.alloc_paging(context)
    made.attach(1, context)
    assert made.map(context, 8, 0, 4, Access.READ).done == 4
    made.translate(1, 8 << 12, 4 << 12, Access.READ)
    return made


def test_books_that_are_right_pass(engine):
    check_engine(engine)


def test_a_page_that_was_charged_to_nobody_is_noticed(engine):
    engine._pool.take(1)
    with pytest.raises(AssertionError, match="pages are in use"):
        check_engine(engine)


def test_a_translation_that_outlived_its_mapping_is_noticed(engine, monkeypatch):
    monkeypatch.setattr(type(engine._iotlb), "_forget", lambda *_: None)
    assert engine.unmap(1, 9, 1).done == 1
    with pytest.raises(AssertionError, match="IOTLB: context 1"):
        check_engine(engine)


# -- feed -------------------------------------------------------------------------------------------------------------


def test_a_feed_is_taken_from_the_front_and_ends_in_zeros():
    feed = Feed(b"\1\2\0\3\0\0\0abc\5")

    assert (feed.u8(), feed.u16(), feed.u32(), feed.take(3), bool(feed)) == (1, 2, 3, b"abc", True)
    assert (feed.u64(), bool(feed), feed.u8(), feed.rest()) == (5, False, 0, b"")


def test_a_choice_takes_one_byte():
    feed = Feed(b"\4x")

    assert (feed.pick("abc"), feed.rest()) == ("b", b"x")
