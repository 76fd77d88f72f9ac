"""The model of /dev/iommu: a program's requests to iommufd and VFIO, carried out without a kernel.

`System` has the devices, a `Process` or `LocalProcess` opens files and makes requests; docs/vfio-user-space.md begins
with an example.
"""

from .devices import MSI_REGION, DeviceConfig, Region, RegionKind
from .events import EventFile
from .hardware import DmaRefusedError
from .process import LocalProcess, OpenFile, Process, System
from .request_error import RequestError
from .user_memory import FileMemory, LocalMemory, UserMemory

__all__ = [
    "MSI_REGION",
    "DeviceConfig",
    "DmaRefusedError",
    "EventFile",
    "FileMemory",
    "LocalMemory",
    "LocalProcess",
    "OpenFile",
    "Process",
    "Region",
    "RegionKind",
    "RequestError",
    "System",
    "UserMemory",
]
