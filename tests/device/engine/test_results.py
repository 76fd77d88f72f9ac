from array import array

from pviommu.engine import Outcome, Run, Stop
from pviommu.engine.results import PackedRuns, whole


def test_an_outcome_is_ok_only_when_nothing_stopped_it():
    assert Outcome(3, None, None).ok
    assert not Outcome(3, Stop.MAPPED, 0x103).ok


def test_a_whole_outcome_has_its_count_whether_shared_or_not():
    assert [whole(done) for done in (0, 512, 513)] == [Outcome(done, None, None) for done in (0, 512, 513)]


def test_packed_runs_are_the_runs_that_they_were_made_of():
    runs = PackedRuns(array("Q", [0x5000, 4096, 0x9000, 10]))

    assert runs == [Run(0x5000, 4096), Run(0x9000, 10)]
    assert runs == PackedRuns(array("Q", [0x5000, 4096, 0x9000, 10]))
    assert runs != [Run(0x5000, 4096)]
    assert runs != 5
    assert (len(runs), runs.size, runs[1], runs[:1]) == (2, 4106, Run(0x9000, 10), [Run(0x5000, 4096)])
