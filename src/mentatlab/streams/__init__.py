"""Streams: a stream is a log, a subscriber a cursor and a byte credit, never a queue."""

from mentatlab.protocol.records import StreamChunk
from mentatlab.streams.buffer import BufferManager
from mentatlab.streams.hub import StreamingConnectionManager, StreamSession, open_hub
from mentatlab.streams.memory import MemoryStreamLog
from mentatlab.streams.port import Appended, Lane, StreamLog
from mentatlab.streams.registry import StreamRegistry
from mentatlab.streams.requests import StreamInitRequest
from mentatlab.streams.segment_folder import SegmentFolder
from mentatlab.streams.sqlite import SqliteStreamLog
from mentatlab.streams.subscription import Subscription

__all__ = [
    "Appended",
    "BufferManager",
    "Lane",
    "MemoryStreamLog",
    "SegmentFolder",
    "SqliteStreamLog",
    "StreamChunk",
    "StreamInitRequest",
    "StreamLog",
    "StreamRegistry",
    "StreamSession",
    "StreamingConnectionManager",
    "Subscription",
    "open_hub",
]
