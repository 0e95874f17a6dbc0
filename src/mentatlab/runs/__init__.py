"""The engine: runs of flows, where the other rooms meet."""

from mentatlab.runs.edges import Edge, MultimodalEdgeProcessor
from mentatlab.runs.engine import Engine
from mentatlab.runs.events import RunEvent
from mentatlab.runs.flow_store import FlowStore, StoredFlow
from mentatlab.runs.key_store import Key, KeyStore, NewKey
from mentatlab.runs.registry import AgentRegistry, BrokenAgent, RegisteredAgent
from mentatlab.runs.schema import SCHEMA
from mentatlab.runs.sql_store import SqlRunStore
from mentatlab.runs.store import RunStore
from mentatlab.runs.views import NodeView, RunView, StreamView

__all__ = [
    "SCHEMA",
    "AgentRegistry",
    "BrokenAgent",
    "Edge",
    "Engine",
    "FlowStore",
    "Key",
    "KeyStore",
    "MultimodalEdgeProcessor",
    "NewKey",
    "NodeView",
    "RegisteredAgent",
    "RunEvent",
    "RunStore",
    "RunView",
    "SqlRunStore",
    "StoredFlow",
    "StreamView",
]
