"""Arguments are checked by what describes them."""

import pytest

from pviommu.control.commands import COMMANDS
from pviommu.control.description import Argument, Command, CommandError, Form, checked

COMMAND = Command(
    "look",
    "look at it",
    (
        Argument("where", "address", Form.HEX, required=True, most=0xFFFF),
        Argument("how", "manner", Form.TEXT, default="long", choices=("long", "short")),
        Argument("count", "how many", default=5, least=1, most=9),
    ),
)


def test_what_is_not_given_has_its_default():
    assert checked(COMMAND, {"where": 4096}) == {"where": 4096, "how": "long", "count": 5}


def test_a_number_may_be_a_text_as_json_has_no_hexadecimal_ones():
    assert checked(COMMAND, {"where": "0x1000", "count": "7"})["where"] == 4096


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "look: where is missing: address"),
        ({"where": 1, "size": 2}, "look has no argument 'size'; its arguments are where, how, count"),
        ({"where": 0x10000}, "look: where 65536: must be an integer from 0 to 65535"),
        ({"where": -1}, "look: where -1: must be an integer from 0 to 65535"),
        ({"where": True}, "look: where True: must be an integer from 0 to 65535"),
        ({"where": 1.5}, "look: where 1.5: must be an integer from 0 to 65535"),
        ({"where": "page"}, "look: where 'page': must be a number, such as 4096 or 0x1000"),
        ({"where": "9" * 5000}, f"look: where '{'9' * 39}...: must be a number, such as 4096 or 0x1000"),
        ({"where": "0x" + "f" * 5000}, f"look: where '0x{'f' * 37}...: must be a number, such as 4096 or 0x1000"),
        ({"where": 1 << 20000}, f"look: where 0x1{'0' * 37}...: must be an integer from 0 to 65535"),
        ({"where": 1, "x" * 5000: 2}, f"look has no argument '{'x' * 39}...; its arguments are where, how, count"),
        ({"where": [1] * 99}, f"look: where [{'1, ' * 13}...: must be an integer from 0 to 65535"),
        ({"where": 1, "how": "wide"}, "look: how 'wide': must be one of long, short"),
        ({"where": 1, "how": 3}, "look: how 3: must be one of long, short"),
        ({"where": 1, "count": 0}, "look: count 0: must be an integer from 1 to 9"),
    ],
)
def test_a_wrong_argument_is_named_with_what_it_may_be(given, text):
    with pytest.raises(CommandError) as error:
        checked(COMMAND, given)

    assert str(error.value) == text


def test_a_command_without_arguments_says_so():
    with pytest.raises(CommandError, match="nothing has no argument 'x'; it takes none"):
        checked(Command("nothing", "do nothing"), {"x": 1})


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_what_comes_in_pages_says_how(command):
    names = {field.name for field in command.result}
    if command.pages:
        assert {command.pages, "next"} <= names
        assert {"first", "limit"} <= {argument.name for argument in command.arguments}
    else:
        assert "next" not in names
