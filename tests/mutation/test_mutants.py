import ast

import pytest

from .mutants import mutants


def changes(source):
    return [mutant.change for mutant in mutants(source)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b <= c", ["a < b <= c -> a <= b <= c", "a < b <= c -> a < b < c"]),
        ("a is not b", ["a is not b -> a is b"]),
        ("a + b", ["a + b -> a - b"]),
        ("a >> b & c", ["a >> b & c -> a >> b | c", "a >> b -> a << b"]),
        ("a and b", ["a and b -> a or b"]),
        ("not a", ["not a -> a"]),
        ("A = 7", ["7 -> 8"]),
        ("A = True", ["True -> False"]),
        ("def f():\n    return a", ["return a -> return None"]),
        ("def f():\n    return None", []),
        ("def f():\n    a = b", ["a = b -> pass"]),
        ("def f():\n    g()", ["g() -> pass"]),
        ("def f():\n    raise E(f'{a + b}')", ["raise E(f'{a + b}') -> pass"]),
        ("def f():\n    for a in b:\n        break", ["break -> pass"]),
    ],
)
def test_each_kind_of_mutant_is_made(source, expected):
    assert changes(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "a: int | None = b",
        "def f(a: int | None) -> int | str: ...",
        "A = tuple[int | None, int]",
        "class C:\n    '''Text.'''\n    __slots__ = ('a',)\n    b = c",
        "def f():\n    a: int",
        "def f():\n    '''Text.'''",
    ],
)
def test_annotations_aliases_slots_and_texts_are_left_alone(source):
    assert changes(source) == []


def test_a_mutant_differs_in_one_place_and_names_its_line():
    source = "a = 1\nif a < 2:\n    a = 3"

    made = list(mutants(source))

    assert [(mutant.line, mutant.source) for mutant in made] == [
        (1, "a = 2\nif a < 2:\n    a = 3"),
        (2, "a = 1\nif a <= 2:\n    a = 3"),
        (2, "a = 1\nif a < 3:\n    a = 3"),
        (3, "a = 1\nif a < 2:\n    a = 4"),
    ]
    assert all(ast.parse(mutant.source) for mutant in made)
