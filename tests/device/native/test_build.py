"""Building the library: where it goes, what the compiler says, what a missing one means."""

import argparse
import os
import shutil
import subprocess

import pytest

from pviommu.exit_status import ExitStatus
from pviommu.native import build, library
from pviommu.native.core import native_core


def environment(folder):
    return {"XDG_CACHE_HOME": str(folder), "PATH": os.environ["PATH"]}


@pytest.fixture(scope="module")
def once_built(tmp_path_factory):
    """A cache folder with the library."""
    folder = tmp_path_factory.mktemp("built")
    build.build(environment(folder))
    return folder


@pytest.fixture
def made(once_built, tmp_path):
    """The library in a cache folder of the test's own, ``tmp_path``."""
    shutil.copytree(once_built, tmp_path, dirs_exist_ok=True)
    return build.find_library(environment(tmp_path))


def test_what_was_built_is_found_and_loads(tmp_path):
    with pytest.raises(build.NotBuiltError):
        build.find_library(environment(tmp_path))

    made = build.build(environment(tmp_path))

    assert made == build.find_library(environment(tmp_path))
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    assert library.Library(made)


def test_it_is_built_once(tmp_path, made):
    def must_not_run(arguments, folder):
        raise AssertionError(arguments)

    assert build.build(environment(tmp_path), compile_with=must_not_run) == made


def test_other_sources_are_another_library(tmp_path):
    sources = tmp_path / "src"
    shutil.copytree(build.SOURCES, sources)
    made = build.build(environment(tmp_path), sources=sources)
    assert build.find_library(environment(tmp_path)) == made

    (sources / "ranges.c").write_text((sources / "ranges.c").read_text() + "\n")

    with pytest.raises(build.NotBuiltError):
        build.find_library(environment(tmp_path), sources)


def test_sources_that_do_not_compile_leave_nothing_behind_but_what_the_compiler_said(tmp_path):
    sources = tmp_path / "src"
    shutil.copytree(build.SOURCES, sources)
    (sources / "ranges.c").write_text("int missing(void) { return nowhere; }\n")

    with pytest.raises(build.BuildError, match="nowhere"):
        build.build(environment(tmp_path / "cache"), sources=sources)

    assert list((tmp_path / "cache/pviommu").iterdir()) == []


def test_a_machine_without_compiler_is_told_so(tmp_path):
    with pytest.raises(build.BuildError, match="none of cc, gcc, clang is in PATH"):
        build.build({"XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path)})


def test_a_compiler_can_be_named(tmp_path):
    compiler = tmp_path / "mycc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)

    assert build.find_compiler({"CC": "mycc", "PATH": str(tmp_path)}) == str(compiler)


def test_a_compiler_elsewhere_gets_all_sources_and_the_options(tmp_path):
    seen = []

    def elsewhere(arguments, folder):
        seen.extend(arguments)
        assert (folder / "core.h").is_file()
        (folder / "core.so").write_text("made elsewhere")
        return subprocess.CompletedProcess(list(arguments), 0, "", "")

    made = build.build(environment(tmp_path), compile_with=elsewhere)

    assert made.read_text() == "made elsewhere"
    assert {"-Wall", "-Wextra", "-Werror", "ring.c", "table.c"} <= set(seen)


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "pviommu").write_text("a file")

    with pytest.raises(
        build.BuildError, match=f"cannot be built: the cache folder {tmp_path / 'pviommu'} is no folder"
    ):
        build.build(environment(tmp_path))


def test_the_command_prints_the_path_or_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)

    assert build.main(parser.parse_args([])) == 0
    assert capsys.readouterr().out.strip() == str(build.find_library())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert build.main(parser.parse_args([])) == ExitStatus.ENVIRONMENT
    assert "no C compiler" in capsys.readouterr().err


@pytest.mark.row("server", 113)
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[::-1]])
def test_a_library_that_is_not_what_was_built_is_not_loaded_and_built_anew(tmp_path, made, damage):
    whole = made.read_bytes()
    made.write_bytes(damage(whole))

    with pytest.raises(build.LibraryError, match=f"{made.name} is damaged.*build it again: pviommu build-core"):
        build.find_library(environment(tmp_path))

    again = build.build(environment(tmp_path))
    assert again.read_bytes() == whole
    assert list(again.parent.iterdir()) == [again]


@pytest.mark.row("server", 111)
def test_a_library_of_another_user_or_one_that_everybody_can_write_is_not_loaded(tmp_path, made, monkeypatch):
    made.chmod(0o666)
    with pytest.raises(build.LibraryError, match="can be written by everybody"):
        build.find_library(environment(tmp_path))

    made.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(made, 65534, 65534)
    else:
        owner = os.geteuid()
        monkeypatch.setattr(build, "check_folder", lambda folder: None)
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(build.LibraryError, match="belongs to user"):
        build.find_library(environment(tmp_path))


@pytest.mark.row("server", 113)
def test_a_library_for_something_else_is_an_error_and_no_core(tmp_path):
    def elsewhere(arguments, folder):
        (folder / "core.so").write_text("for another machine")
        return subprocess.CompletedProcess(list(arguments), 0, "", "")

    made = build.build(environment(tmp_path), compile_with=elsewhere)

    with pytest.raises(build.LibraryError, match=r"the native core does not load: .*core-"):
        native_core(made)
