"""The lab: provisions QEMU and a guest kernel, builds the modules, boots a VM around the server and judges the run."""
