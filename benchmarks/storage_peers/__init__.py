"""Gigabytes in and out, ours beside other servers and clients; see ../README.md."""
