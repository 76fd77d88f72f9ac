"""Some tests of interfaces/smmuv3/test_ats.py with a core that walks and carries out commands. It knows nothing of an
endpoint's cache, nor of what a CMD_SYNC waits for there.
"""

from ...interfaces.smmuv3.test_ats import (
    ats,
    pytestmark,
    test_a_block_is_one_entry,
    test_a_sync_that_has_waited_too_long_says_so_and_passes_when_that_is_acknowledged,
    test_a_sync_waits_for_the_answer,
    test_commands_before_a_sync_do_not,
    test_strict_an_invalidation_that_is_missing_shows_when_its_entry_is_used,
    test_turned_off_at_the_endpoint_the_smmu_translates_as_ever,
    test_what_the_endpoint_has_been_told_is_used_until_it_is_told_otherwise,
    unanswered,
)

__all__ = [
    "ats",
    "pytestmark",
    "test_a_block_is_one_entry",
    "test_a_sync_that_has_waited_too_long_says_so_and_passes_when_that_is_acknowledged",
    "test_a_sync_waits_for_the_answer",
    "test_commands_before_a_sync_do_not",
    "test_strict_an_invalidation_that_is_missing_shows_when_its_entry_is_used",
    "test_turned_off_at_the_endpoint_the_smmu_translates_as_ever",
    "test_what_the_endpoint_has_been_told_is_used_until_it_is_told_otherwise",
    "unanswered",
]
