"""What tests of others use (docs/pytest.md): a device, a server or a VM, each with rules, a verdict and a report.

The pytest plugin (:mod:`pviommu.pytest_plugin`) makes fixtures of them; nothing here needs pytest.
"""
