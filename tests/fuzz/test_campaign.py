import pytest

from .campaign import SECONDS, Campaign
from .run import NAMES


@pytest.mark.parametrize("fuzzed", NAMES)
def test_fuzzing_finds_nothing(campaign, fuzzed):
    outcome = campaign.outcome(fuzzed)

    assert outcome.status == 0, outcome.report()
    assert f"inputs in {SECONDS} s of CPU time" in outcome.output, outcome.report()


def test_a_campaign_that_is_closed_leaves_no_process_behind():
    campaign = Campaign(["version"], seconds=600)

    campaign.close()

    assert campaign.outcome("version").status < 0
