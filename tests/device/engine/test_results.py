from pviommu.engine import Outcome, Stop
from pviommu.engine.results import whole


def test_an_outcome_is_ok_only_when_nothing_stopped_it():
    assert Outcome(3, None, None).ok
    assert not Outcome(3, Stop.MAPPED, 0x103).ok


def test_a_whole_outcome_has_its_count_whether_shared_or_not():
    assert [whole(done) for done in (0, 512, 513)] == [Outcome(done, None, None) for done in (0, 512, 513)]
