"""``pviommu selfcheck``: random histories against a model, through the engine, a ring and the wire.

:mod:`.model` defines what the engine must do, :mod:`.profiles` what a guest must see, :mod:`.rules` what is tried;
:mod:`.engine_path`, :mod:`.snapshot_path`, :mod:`.ring_path` and :mod:`.wire_path` are the ways in.
"""
