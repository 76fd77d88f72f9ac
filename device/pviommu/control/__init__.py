"""How a running server is looked at and steered: a socket that speaks as QEMU's QMP does, and ``pviommu ctl``."""
