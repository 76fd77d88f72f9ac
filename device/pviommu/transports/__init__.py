"""How clients reach the functions of a machine: one module per transport."""

__all__ = ["LIBRARY", "TRANSPORTS"]

LIBRARY = "libvfio-user"
"""What the transport by the C library is called."""

TRANSPORTS = ("vfio-user", LIBRARY)
"""By their names as users give them; the first is this project's own, and the default."""
