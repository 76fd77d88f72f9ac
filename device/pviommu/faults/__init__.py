"""Scripted faults: rules that say what goes wrong in the device and when, and what came of them (docs/faults.md).

A scenario is data (:mod:`.scenario`) about places that are data (:mod:`.catalogue`). Loaded, it is a
:class:`.engine.Faults`, which takes the place of calls at the probes that it has rules for (:mod:`.points`).
"""
