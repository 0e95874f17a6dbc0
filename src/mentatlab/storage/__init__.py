"""Bytes, and what we know of them."""

from mentatlab.storage.manager import StorageManager, Swept, open_local, open_memory

__all__ = ["StorageManager", "Swept", "open_local", "open_memory"]
