import pytest

from pviommu.engine import ReservedFrames
from pviommu.engine.attachments import Attachments


def test_a_stream_names_one_endpoint():
    attachments = Attachments()
    attachments.add(7, 0)

    with pytest.raises(ValueError, match="stream 7 exists already"):
        attachments.add(7, 0)


def test_the_view_cannot_be_written_and_follows_moves():
    attachments = Attachments()
    attachments.add(1, 0)
    view = attachments.view()

    attachments.domains[1] = 5

    assert view[1] == 5
    assert list(attachments.inside(5)) == [(1, None)]
    with pytest.raises(TypeError):
        view[1] = 0


def test_who_is_inside_is_told_with_pasids():
    attachments = Attachments()
    attachments.add(1, 5)
    attachments.add(2, 0)
    attachments.pasids[2, 9] = 5

    assert list(attachments.inside(5)) == [(1, None), (2, 9)]


def test_an_endpoint_keeps_the_regions_that_it_came_with():
    attachments = Attachments()
    attachments.add(1, 0, [ReservedFrames(4, 5, "direct")])
    attachments.add(2, 0)

    assert attachments.regions(1) == ((4, 5, "direct"),)
    assert attachments.regions(2) == ()


def test_reset_returns_every_endpoint_to_where_it_began():
    attachments = Attachments()
    attachments.add(1, 0)
    attachments.add(2, 7)
    attachments.domains.update({1: 9, 2: 9})
    attachments.pasids[1, 3] = 9
    attachments.blocked.add(2)

    attachments.reset()

    assert (attachments.view(), attachments.pasids, attachments.blocked) == ({1: 0, 2: 7}, {}, set())
