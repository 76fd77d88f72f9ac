"""The native core: page tables, translation and the busy part of the rings in C, behind the interfaces of Python's.

`src/` is built by `build.py` with any C compiler and loaded by ctypes, so it needs no headers of Python. Without it the
Python core does the same work more slowly.
"""
