"""What a scenario file may say, and what is said of one that is wrong."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import msgspec
import pytest

from pviommu.documents import WrongValueError
from pviommu.faults.actions import ACTIONS, Do
from pviommu.faults.catalogue import Nature
from pviommu.faults.scenario import Expect, Rule, Scenario, ScenarioError, load, parse, schema
from pviommu.faults.schedule import Schedule
from pviommu.schemas import paths

EXAMPLE = """
version = 1
seed = 7
[[rule]]
id = "second-map-out-of-memory"
on = "op.map_pages.pre"
where = { ctx = 3, dfn = "0x1000..0x1fff" }
schedule = { nth = 2 }
do = { fail = "ENOMEM" }
expect = { fired = 1 }
"""
OBJECTS = Scenario(
    seed=7,
    rule=(
        Rule(
            id="second-map-out-of-memory",
            on="op.map_pages.pre",
            where={"ctx": 3, "dfn": "0x1000..0x1fff"},
            schedule=Schedule(nth=2),
            do=Do(fail="ENOMEM"),
            expect=Expect(fired=1),
        ),
    ),
)


def test_toml_json_and_objects_are_the_same(tmp_path: Path) -> None:
    toml, js = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text(EXAMPLE)
    js.write_text(json.dumps(tomllib.loads(EXAMPLE)))

    assert load(toml) == load(js) == OBJECTS
    assert parse(msgspec.to_builtins(OBJECTS)) == OBJECTS
    OBJECTS.check()


IRQ, RESET = 'on = "interrupt.apply"\n', 'on = "reset.pre"\n'
MAP, MAPPING = 'on = "op.map_pages.pre"\n', 'on = "op.map_pages.apply"\n'


def rule(text: str) -> str:
    return f'version = 1\n\n[[rule]]\nid = "a"\n{text}\n'


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (rule(MAP + 'do = { fail = "ENOMEN" }'), 6, "ENOMEN is no error of op.map_pages, which are"),
        (rule('on = "op.mapp_pages.pre"'), 5, "the nearest are op.map_pages.pre"),
        (rule('on = "op.*.pre"\ndo = { fail = "ENOMEM" }'), 6, "ENOMEM is no error of op.query_capabilities"),
        (rule(MAP + "where = { iova = 4 }"), 6, "where has no key iova here, but ctx, dfn"),
        (rule(MAP + '[rule.where]\nctx = 1\ndfn = "5..2"'), 8, "and not backwards"),
        (rule(IRQ + "schedul = { nth = 2 }"), 6, "unknown key schedul; known are id, on, where, schedule"),
        (rule(IRQ + "schedule = { nth = 0 }"), 6, "schedule.nth = 0: must be a whole number, 1 to"),
        (rule(IRQ + "schedule = { probability = 2 }"), 6, "must be more than 0 and at most 1"),
        (rule(IRQ + "do = { drop = false }"), 6, "drop = false: must be true"),
        (rule(IRQ + 'do = { drop = true, log = "x" }'), 6, "one action: it has drop and log; there are fail"),
        (rule(IRQ + 'do = { jitter = "1ms" }'), 6, "one action: it has none"),
        (rule(IRQ + "do = { drop = true, xor = 1 }"), 6, "xor does not go with drop, but with corrupt"),
        (rule(IRQ + 'do = { delay = "5ms" }'), 6, "delay is not possible at interrupt.apply (delay: interrupt.pre)"),
        (
            rule('on = "interrupt.pre"\ndo = { delay = "5 min" }'),
            6,
            "delay = '5 min': must be a time, as 250us, 1.5ms or 2s",
        ),
        (rule(MAP + 'do = { bandwidth = "fast" }'), 6, "must be units a second, as 64Ki/s"),
        (rule('on = "op.map_pages.post"\ndo = { status = "EFOO" }'), 6, "must be 0 to 4095, or one of EPERM"),
        (rule(MAP + 'do = { corrupt = "iova", xor = 1 }'), 6, "op.map_pages has no field iova, but ctx, dfn"),
        (rule(MAPPING + "do = { partial = 3 }"), 6, "partial needs then beside it"),
        (rule(MAP + 'do = { assert = { nr = "x" } }'), 6, "assert.nr = 'x': must be a number or a range"),
        (rule(RESET + 'expect = { fired = "x" }'), 6, "expect.fired = 'x': must be a number or a range"),
        (rule(RESET + 'when_state = "armed"'), 6, "state 'armed' is never reached: the states are start"),
        (rule(RESET + 'when_state = "on"\nset_state = "on"'), 6, "state 'on' is never reached: the states are start"),
        (rule(RESET + '[[rule]]\nid = "a"\non = "reset.pre"'), 7, "id 'a': rule[0] has it already"),
        (rule(RESET + '[expect]\nstate = "end"'), 7, "state 'end' is never reached"),
        (rule(f'on = "{"*a" * 65}"'), 5, "must be"),
        (rule(f'on = "interrupt.pre"\ndo = {{ delay = "{"9" * 400}s" }}'), 6, "must be a time, as 250us"),
        (rule('on = "interrupt.pre"\ndo = { delay = "1s\\n" }'), 6, "must be a time, as 250us"),
        (rule(MAP + f'do = {{ bandwidth = "{"9" * 5000}/s" }}'), 6, "must be units a second, as 64Ki/s"),
        (
            rule(MAP + "do = { corrupt = -1, xor = 1 }"),
            6,
            "corrupt = -1: must be the name of a field, or the offset of",
        ),
        (rule(MAP + "do = { corrupt = 4294967296, xor = 1 }"), 6, "of a byte, 0 to 4294967295 (rule a)"),
        (rule(MAP + "do = { corrupt = true, xor = 1 }"), 6, "do.corrupt = true: must be"),
        (rule(MAP + "do = { corrupt = 2, value = 256 }"), 6, "value = 256: corrupt = 2 is one byte, so at most 255"),
        (
            rule('on = "table.map.pre"\ndo = { corrupt = "ctx", xor = 0x10000 }'),
            6,
            "ctx of table.map has 16 bits, so at most",
        ),
        (
            rule('on = "ring.decode.pre"\ndo = { corrupt = "op", value = 256 }'),
            6,
            "value = 256: op of ring.decode has 8",
        ),
        (rule(MAP + "do = { corrupt = 2, xor = 0 }"), 6, "do.xor = 0: must be a whole number, 1 to"),
        (
            rule('on = "table.map.pre"\ndo = { corrupt = 2, xor = 1 }'),
            6,
            "table.map has no bytes, but the fields ctx, dfn",
        ),
        (rule('on = "fault.deliver.pre"\ndo = { corrupt = 2, xor = 1 }'), 6, "has no bytes, but the fields reason, "),
        (rule(MAP + "do = { status = -3 }"), 6, "status = -3: must be 0 to 4095, or one of EPERM"),
        (rule(MAP + "do = { assert = {} }"), 6, "assert = {}: must have a condition"),
        (rule(MAP + 'do = { suspend = "a\\nb" }'), 6, "must be a tag of 1 to 64 printable characters (rule a)"),
        (rule(MAP + 'do = { log = "" }'), 6, "do.log = '': must be a text of 1 to 200 characters"),
        (rule(MAP + "where = { ctx = 18446744073709551616 }"), 6, "at most 0xffffffffffffffff and not backwards"),
        (
            rule(MAP + 'schedule = "nth=2"'),
            6,
            "schedule = 'nth=2': must be a table, as { key = value }, with the keys nth",
        ),
        (rule(MAP + 'do = "fail"'), 6, "do = 'fail': must be a table, as { key = value }, with the keys fail, "),
        (rule(MAP + "where = 4"), 6, "where = 4: must be a table, as { key = value } (rule a)"),
        (
            '[[expect]]\nstate = "end"\n',
            1,
            "expect = an array of 1: must be a table, as { key = value }, with the keys state",
        ),
        ('[rule]\nid = "a"\non = "reset.pre"', 1, "rule = a table: must be at most 127 tables, each headed [[rule]]"),
        ('[[rule]]\nid = "a\\n"\non = "reset.pre"', 2, "must be 1 to 64 of letters, digits"),
        ("version = 2\n", 1, "version = 2: must be 1"),
        (f"seed = 0x{'f' * 9999}\n", 1, "seed = 0xffff"),
        (rule(MAP + f"where = {{ ctx = 0x{'f' * 9999} }}"), 6, "where.ctx = 0xffff"),
        ("seed = -1\n", 1, "seed = -1: must be a whole number, 0 to"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_would_be_right(
    tmp_path: Path, text: str, line: int, said: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)

    with pytest.raises(ScenarioError) as caught:
        load(path)
    assert f"line {line}: " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": "a", "on": "reset.pre", "do": {"fail": "EIO"}}', "rule[0].do.fail: rule a: fail is not possible at"),
        ('{"id": "a", "on": "reset.pre", "do": {"drop": 1}}', "rule[0].do.drop = 1: must be true (rule a)"),
        ('{"id": "a", "on": "reset.pre", "if": 1}', "rule[0].if: rule[0]: unknown key if; known are id, on, where"),
        ('{"id": 3, "on": "reset.pre"}', "rule[0].id = 3: must be 1 to 64 of letters"),
        ('{"id": "a", "on": "reset.pre", "on": "reset.post"}', "an object has the key on twice"),
        ("null", "rule[0] = null: must be a table"),
    ],
)
def test_json_names_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(f'{{"rule": [{text}]}}')

    with pytest.raises(ScenarioError) as caught:
        load(path)
    assert said in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("a.toml", ""), ("a.toml", "seed = 7\n"), ("a.json", "{}")])
def test_a_scenario_without_rules_could_judge_nothing_and_is_wrong(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)

    with pytest.raises(ScenarioError, match=r"it has no \[\[rule\]\]: .* nothing could be judged"):
        load(path)


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ScenarioError, match="scenario /dev/zero: it has more than 4194304 bytes"):
        load(Path("/dev/zero"))


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_what_is_nested_without_end_is_told_as_any_mistake(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep{suffix}"
    path.write_text(("a = " if suffix == ".toml" else "") + "[" * 100_000)

    with pytest.raises(ScenarioError, match="nested too deeply"):
        load(path)


@pytest.mark.parametrize("text", ["x = ", f"x = {'9' * 5000}", '{"rule": 1', "\xff"])
def test_what_is_no_document(tmp_path: Path, text: str) -> None:
    for name in ("wrong.toml", "wrong.json"):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(ScenarioError, match=name):
            load(tmp_path / name)
    with pytest.raises(ScenarioError, match=r"cannot read scenario .*: No such file"):
        load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("on", "do", "nature"),
    [
        ("op.map_pages.pre", {"fail": "ENOMEM"}, Nature.CONFORMING),
        ("op.map_pages.pre", {"fail": "EINVAL"}, Nature.ADVERSARIAL),
        ("op.map_pages.pre", {"status": 12}, Nature.ADVERSARIAL),
        ("op.map_pages.apply", {"partial": 1, "then": "ENOMEM"}, Nature.CONFORMING),
        ("op.map_pages.apply", {"partial": 1, "then": "EINVAL"}, Nature.ADVERSARIAL),
        ("op.map_pages.pre", {"delay": "1ms"}, Nature.CONFORMING),
        ("op.map_pages.pre", {"hang": True}, Nature.ADVERSARIAL),
        ("interrupt.apply", {"drop": True}, Nature.ADVERSARIAL),
        ("interrupt.apply", {"duplicate": 1}, Nature.CONFORMING),
        ("iotlb.*.apply", {"duplicate": 1}, Nature.CONFORMING),
        ("iotlb.fill.apply", {"drop": True}, Nature.CONFORMING),
        ("iotlb.*.apply", {"drop": True}, Nature.ADVERSARIAL),
    ],
)
def test_an_action_is_conforming_or_adversarial_by_its_place(on: str, do: dict[str, object], nature: Nature) -> None:
    found = parse({"rule": [{"id": "a", "on": on, "do": do}]}).rule[0]
    assert found.nature is nature


def test_the_schema_that_is_shipped_is_that_of_the_code_and_holds_for_what_is_right() -> None:
    shipped = json.loads(paths()["scenario"].read_text())
    assert shipped == json.loads(json.dumps(schema())), "python -m pviommu.schemas writes it"
    validator = jsonschema.Draft202012Validator(shipped)
    validator.validate(tomllib.loads(EXAMPLE))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(tomllib.loads(EXAMPLE.replace("nth", "nht")))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(tomllib.loads(EXAMPLE.replace("ctx =", "context =")))


def test_every_action_is_a_key_of_do() -> None:
    keys = {field.encode_name for field in msgspec.structs.fields(Do)}
    assert set(ACTIONS) <= keys
    assert {key for action in ACTIONS.values() for key in action.parameters} == keys - set(ACTIONS)


def test_an_action_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(WrongValueError, match="one action: it has none"):
        parse({"rule": [{"id": "a", "on": "reset.pre", "do": {}}]})
