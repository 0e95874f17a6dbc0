"""Bytes, and what we know of them."""

from mentatlab.storage.life import Swept
from mentatlab.storage.manager import StorageManager, open_local, open_memory
from mentatlab.storage.sources import too_large

__all__ = ["StorageManager", "Swept", "open_local", "open_memory", "too_large"]
