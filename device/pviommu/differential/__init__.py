"""The virtual SMMUv3 beside QEMU's: the same stimuli to both, and what comes of them compared."""
