"""What the translator of an endpoint makes of the engine's answers."""

import pytest

from pviommu.dma.fault import Fault
from pviommu.dma.translator import PENDING
from pviommu.engine import Access, Refusal, Wait

R = Access.READ


class Answers:
    """A first stage that always says the same."""

    def __init__(self, answer):
        self.answer = answer

    def walk(self, iova, length, access, parent):
        return self.answer


@pytest.fixture
def translated(driver):
    """What a request of stream 1 comes to when the domain that it is attached to gives an answer."""

    def translate(answer):
        engine = driver.iommu.engine
        engine.alloc_paging(1)
        engine.alloc_nested(2, 1, Answers(answer))
        engine.attach(1, 2)
        return driver.iommu.stream(1).translate([([(0x1000, 8)], R)])

    return translate


@pytest.mark.parametrize("refusal", list(Refusal))
def test_every_refusal_is_a_kind_of_fault(translated, refusal):
    fault = translated(refusal)

    assert isinstance(fault, Fault)
    assert fault.kind.name == {"NO_PERMISSION": "PERMISSION", "NO_ENDPOINT": "BLOCKED", "NO_PASID": "BLOCKED"}.get(
        refusal.name, refusal.name
    )
    assert (fault.iova, fault.access, fault.length, fault.stream) == (0x1000, R, 8, 1)


def test_what_waits_for_a_page_request_is_asked_again(translated):
    assert translated(Wait.PAGE_REQUEST) is PENDING
