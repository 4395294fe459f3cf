"""The audit log: one process (``recorder.py``) writes what workers send it (``sender.py``)."""
