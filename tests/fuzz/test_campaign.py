import os
import signal
import threading

import pytest

from .campaign import NOT_TOLD, Campaign, seconds_of
from .run import NAMES


@pytest.mark.parametrize("fuzzed", NAMES)
def test_fuzzing_finds_nothing(campaign, fuzzed):
    outcome = campaign.outcome(fuzzed)

    assert outcome.status == 0, outcome.report()
    assert f"inputs in {seconds_of(fuzzed)} s of CPU time" in outcome.output, outcome.report()


def test_a_campaign_that_is_closed_ends_with_its_fuzzers(tmp_path):
    campaign = Campaign(tmp_path)
    campaign.start(["version"], seconds=600)

    campaign.close()

    assert campaign.outcome("version").status == -signal.SIGKILL


def test_a_campaign_that_ended_early_is_noticed_by_who_did_not_start_it(tmp_path):
    campaign = Campaign(tmp_path)
    campaign.start(["no-such-target"])
    other = Campaign(tmp_path)

    assert other.outcome("version").status == NOT_TOLD

    campaign.close()


def test_a_campaign_shows_in_nothing_that_tests_count(tmp_path):
    before = len(os.listdir("/proc/self/fd")), threading.active_count()

    campaign = Campaign(tmp_path)
    campaign.start(["version"], seconds=600)
    during = len(os.listdir("/proc/self/fd")), threading.active_count()
    campaign.close()

    assert during == before
