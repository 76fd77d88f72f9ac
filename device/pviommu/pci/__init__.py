"""What every emulated PCI function has: configuration space, capabilities, BARs, MSI-X, registers."""
