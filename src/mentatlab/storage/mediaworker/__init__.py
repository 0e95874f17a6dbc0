"""The limited process that opens untrusted media; `storage.workers` starts and feeds it.

Run as `python -P -m mediaworker` with this package's folder on the path, so that it imports nothing
of the server.
"""
