"""What the library's own tests say to a server, said to this project's: by the stand-in of ``suite.py``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import vfio_user

FILES = ("device_*", "dma_map", "dma_unmap", "irq_trigger", "negotiate", "request_errors", "setup_region")
"""The others are about capabilities, scatter lists, migration, dirty pages: nothing that this server has."""

DIFFERENT = {
    "ten regions, where the protocol has at least nine": {
        "device_get_info",
        "device_get_region_info_migr",
        "device_get_region_info_zero_sized_region",
    },
    "a descriptor for each area, and so not enough of them for nine": {"device_get_region_info_caps_too_few_fds"},
    "descriptors for accesses, which no region here has; an absent region has none, and that is no error": {
        "device_get_region_io_fds_setup",
        "device_get_region_io_fds_no_regions_setup",
        "device_get_region_io_fds_fds_read_write",
        "device_get_region_io_fds_fds_read_write_nothing",
        "device_get_region_io_fds_fds_read_write_dupe_fd",
        "device_get_region_io_fds_ioeventfd_invalid_size",
    },
    "at most sixteen ranges, without a word about it": {"dma_region_too_many"},
    "quiescing, a matter between the library and its device": {
        "dma_map_busy",
        "dma_map_busy_reply_fail",
        "dma_unmap_async",
        "disconnected_socket",
        "disconnected_socket_quiesce_busy",
        "reply_fail_quiesce_busy",
    },
    "the callback for a new range": {"dma_map_reply_fail"},
    "a dirty bitmap, which the protocol has no more": {"dma_unmap_dirty_not_mapped"},
    "capabilities that the client has not proposed": {"valid_negotiate_no_json"},
    "what the library's own functions refuse, and its configuration space": {
        "setup_region_bad_flags",
        "setup_region_bad_mmap_areas",
        "setup_region_bad_index",
        "setup_region_bad_pci",
        "setup_region_bad_migr",
        "setup_region_cfg_always_cb_nocb",
        "setup_region_cfg_always_cb",
    },
}
"""Why, and which; without ``test_``."""


def test_all_that_is_not_known_to_differ_passes(library_path: Path, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    folder = library_path.parent / "source/test/py"
    paths = sorted(path.name for name in FILES for path in folder.glob(f"test_{name}.py"))
    options = [
        "-c",
        tmp_path / "pytest.ini",
        "--rootdir",
        folder,
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-p",
        "suite",
        "-q",
        "-rA",
    ]
    environment = os.environ | {
        "LIBVFIO_SO_DIR": "/nowhere",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": f"{Path(vfio_user.__file__).parents[1]}:{Path(__file__).parent}",
    }
    command = [sys.executable, "-m", "pytest", *options, *paths]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    outcomes = re.findall(r"^(PASSED|FAILED|ERROR) test_\w+\.py::test_(\w+)", ended.stdout, re.MULTILINE)
    failed = {name for outcome, name in outcomes if outcome != "PASSED"}
    assert failed == set().union(*DIFFERENT.values()), ended.stdout
    assert len(outcomes) - len(failed) == 95
