from pviommu.interfaces.pv.profile import DONE, REFUSED, Reply
from pviommu_abi.slots import Errno


def test_a_reply_changes_no_payload_unless_it_says_so():
    assert Reply(-1).payload == DONE.payload == REFUSED.payload == b""


def test_refusing_is_einval_and_done_is_0():
    assert (REFUSED.result, DONE.result) == (-Errno.EINVAL, 0)
