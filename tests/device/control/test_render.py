"""Results as people see them."""

from pviommu.control.commands import COMMANDS
from pviommu.control.render import rendered

BY_NAME = {command.name: command for command in COMMANDS}


def test_values_are_lines_and_lists_are_tables():
    result = {
        "context": 3,
        "kind": "paging",
        "direct": [],
        "areas": [{"dfn": 0x10, "pages": 2, "gfn": 0x100, "access": "READ"}],
        "next": 0x20,
    }

    assert rendered(BY_NAME["dump"], result) == (
        "context  3\n"
        "kind     paging\n"
        "\n"
        "direct: none\n"
        "\n"
        "areas:\n"
        "  dfn   pages  gfn    access\n"
        "  0x10  2      0x100  READ\n"
    )


def test_nothing_yes_no_and_times_are_words():
    said = rendered(
        BY_NAME["status"],
        {
            "uptime_ns": 1_500_000,
            "trace": False,
            "rings": [],
            "functions": [{"name": "iommu", "kind": "iommu", "client": None, "bus_master": True}],
        },
    )

    assert "uptime_ns  1.5 ms\n" in said
    assert "trace      no\n" in said
    assert "  iommu  iommu  -       yes\n" in said


def test_a_text_of_lines_is_itself():
    assert rendered(BY_NAME["statistics"], {"text": "a 1\nb 2\n"}) == "a 1\nb 2\n"


def test_a_fault_in_a_list_has_the_sentence_of_its_explanation():
    fault = {"number": 1, "iova": 0x5000, "explanation": {"cause": "never-mapped", "text": "nobody mapped it"}}
    said = rendered(BY_NAME["faults"], {"faults": [fault], "count": 1, "unexplained": 0, "next": None})

    assert said.splitlines()[-1].split(maxsplit=2) == ["1", "0x5000", "nobody mapped it"]


def test_mappings_beside_an_address_are_one_line():
    below = {"iova": 0x1000, "length": 0x2000, "gfn": 16, "access": "READ", "distance": 7}

    assert rendered(BY_NAME["explain"], {"below": below, "above": None}) == (
        "below  iova 0x1000, length 0x2000, gfn 0x10, access READ, distance 7\nabove  -\n"
    )


def test_nothing_is_nothing():
    assert rendered(BY_NAME["quit"], {}) == ""
