"""The fewest rules that still fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.cli import main
from pviommu.faults.scenario import load
from pviommu.scenarios.minimise import fewest
from pviommu.scenarios.run import played

RULES = """version = 1
seed = 3

[[rule]]
id = "slow"
on = "op.map_pages.pre"
do = { delay = "1ms" }

[[rule]]
id = "arms"
on = "op.bind.post"
schedule = { nth = 2 }
set_state = "armed"

[[rule]]
id = "misses"
on = "iotlb.lookup.pre"
do = { miss = true }

[[rule]]
id = "lies"
on = "op.unmap_pages.apply"
when_state = "armed"
schedule = { nth = 3 }
do = { lie = true }

[[rule]]
id = "never"
on = "op.block.pre"
do = { delay = "1ms" }
"""


@given(st.lists(st.integers(0, 40), unique=True, min_size=1), st.data())
def test_what_fails_together_is_found_whatever_is_around_it(parts: list[int], data: st.DataObject) -> None:
    culprits = set(data.draw(st.lists(st.sampled_from(parts), min_size=1, unique=True)))
    asked: list[Sequence[int]] = []

    def fails(subset: Sequence[int]) -> bool:
        asked.append(subset)
        return culprits <= set(subset)

    assert fewest(parts, fails) == [part for part in parts if part in culprits]
    assert len(asked) <= len(parts) ** 2 + 3 * len(parts)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12))
def test_none_of_what_is_left_can_be_left_out(parts: list[int]) -> None:
    most = max(sum(parts) // 2, 1)

    def fails(subset: Sequence[int]) -> bool:
        return sum(subset) >= most

    left = fewest(parts, fails) if fails(parts) else []
    assert all(not fails(left[:place] + left[place + 1 :]) for place in range(len(left))) or len(left) == 1


def test_a_scenario_comes_down_to_the_rules_that_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, smaller = tmp_path / "whole.toml", tmp_path / "smaller.toml"
    whole.write_text(RULES)
    words = ["faults", "sweep", "--minimise", str(whole), "--workload", "maps"]
    assert main([*words, "--output", str(smaller)]) == 0
    assert capsys.readouterr().err == "pviommu: 2 of 5 rules still fail\n"
    found = load(smaller)
    assert [rule.id for rule in found.rule] == ["arms", "lies"]
    assert (found.seed, found.rule) == (3, tuple(rule for rule in load(whole).rule if rule.id in ("arms", "lies")))
    assert played(found, "maps").harm
    assert main(words) == 0
    assert capsys.readouterr().out == smaller.read_text()


def test_if_nothing_else_is_wrong_a_rule_that_never_fired_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "it.toml"
    path.write_text(RULES.replace("lie = true", "duplicate = 1").replace("nth = 3", "nth = 99"))
    assert main(["faults", "sweep", "--minimise", str(path)]) == 0
    assert 'id = "never"' in capsys.readouterr().out


def test_the_workload_is_that_of_the_scenario_unless_another_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "it.toml"
    path.write_text(
        'version = 1\nworkload = "operations"\n\n[[rule]]\nid = "slow"\non = "op.batch.pre"\ndo = { delay = "1ms" }\n'
    )
    for words, workload in (([], "operations"), (["--workload", "maps"], "maps")):
        status = main(["faults", "sweep", "--minimise", str(path), *words])
        said = capsys.readouterr()
        if workload == "operations":
            assert (status, said.err) == (5, f"pviommu: {path}: nothing fails in workload operations\n")
        else:  # where nothing passes its place
            assert (status, said.err) == (0, "pviommu: 1 of 1 rules still fail\n")


def test_there_is_nothing_to_make_smaller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "it.toml"
    path.write_text('version = 1\n\n[[rule]]\nid = "slow"\non = "op.map_pages.pre"\ndo = { delay = "1ms" }\n')
    assert main(["faults", "sweep", "--minimise", str(path)]) == 5
    assert capsys.readouterr().err == f"pviommu: {path}: nothing fails in workload maps\n"
