"""DMA: guest memory, the BARs of the machine, and the port through which an endpoint reaches them."""
