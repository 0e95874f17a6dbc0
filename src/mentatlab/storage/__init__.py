"""Bytes, and what we know of them."""

from mentatlab.storage.life import Swept
from mentatlab.storage.manager import StorageManager, open_local, open_memory
from mentatlab.storage.opening import Choice, Opened, open_storage, read_choice
from mentatlab.storage.sources import too_large
from mentatlab.storage.upload_rows import NO_QUOTA, Quota

__all__ = [
    "NO_QUOTA",
    "Choice",
    "Opened",
    "Quota",
    "StorageManager",
    "Swept",
    "open_local",
    "open_memory",
    "open_storage",
    "read_choice",
    "too_large",
]
