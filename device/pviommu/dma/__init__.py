"""DMA: the guest's memory, the BARs beside it, and the port through which an endpoint reaches them."""
