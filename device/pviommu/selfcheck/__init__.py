"""``pviommu selfcheck``: random histories against a model, through the engine, a ring and the wire.

:mod:`.model` defines what the engine must do, :mod:`.profiles` what a guest must see, :mod:`.rules` what is tried;
:mod:`.engine_path`, :mod:`.snapshot_path`, :mod:`.ring_path`, :mod:`.machine_path` and :mod:`.wire_path` are the ways
in. In :mod:`.tables_path` and :mod:`.tables_guest` the guest owns the tables of its contexts (:mod:`.own_tables`).
"""
