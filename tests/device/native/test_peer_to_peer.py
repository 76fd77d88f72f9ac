"""The tests of test_peer_to_peer.py, on a device with the native core and its copier."""

from ..dma.test_peer_to_peer import *  # noqa: F403
