"""The unit of all addresses in an engine: frames of 4 KiB."""

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = PAGE_SIZE - 1
ADDRESS_LIMIT = 1 << 64
FRAME_LIMIT = ADDRESS_LIMIT >> PAGE_SHIFT
"""First frame number whose address does not fit 64 bits."""
