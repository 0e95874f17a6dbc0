"""Streams under load, ours beside other servers; see ../README.md."""
