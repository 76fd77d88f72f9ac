"""The tests of iommu/test_execution.py, on a device with the native core."""

from ..interfaces.pv import test_execution
from ..interfaces.pv.test_execution import *  # noqa: F403

# These step in at places that only the Python core has: where slots are copied, and CommandRing.publish.
globals().pop(test_execution.test_unmap_is_published_only_when_no_dma_can_use_the_old_translation.__name__)
globals().pop(test_execution.test_a_slot_changed_while_an_earlier_one_is_executed_has_no_effect.__name__)
globals().pop(test_execution.test_a_map_does_not_wait_for_the_other_rings.__name__)
