"""Streams over a WebSocket, for programs (extra `client`); see `connection`."""

from mentatlab.sdk.streaming.connection import StreamConnection
from mentatlab.sdk.streaming.messages import MediaChunk
from mentatlab.sdk.streaming.publisher import Publisher
from mentatlab.sdk.streaming.subscription import Subscription

__all__ = ["MediaChunk", "Publisher", "StreamConnection", "Subscription"]
