"""Arm's SMMUv3 as its driver sees it: registers, structures in memory, commands and events.

Declared from the Arm System Memory Management Unit Architecture Specification, SMMU architecture version 3 (IHI 0070),
as far as the virtual SMMUv3 has it; names are the specification's. Usable alone.
"""
