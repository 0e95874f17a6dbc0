"""What an installation can set for the processes that run its agents."""

import os

import msgspec

from mentatlab.runners.child import Limits
from mentatlab.runners.machine import Machine


class RunnerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and bytes."""

    limits: Limits = Limits()
    machine: Machine | None = None
    """What may be given to agents; None = all that this machine or container has."""
    pool_memory: int = 0
    """That warm processes may take together; 0 = the machine's."""
    grace_s: float = 5.0
    """Between asking a process to end and killing it."""
    exit_grace_s: float = 10.0
    """For a process that has closed its output to end."""
    mailbox_bytes: int = 256 * 1024
    """Events of one attempt that wait to be read, before its process waits."""
    log_bytes: int = 10 * 1000 * 1000
    """Of one attempt's log that are kept; the rest is dropped with one notice."""
    flood_bytes: int = 100 * 1000 * 1000
    """Of log after which the agent is ended with AGENT_FLOOD."""
    max_workers: int = 16
    """Warm processes of all agents together."""
    max_workers_per_agent: int = max(2, os.cpu_count() or 2)
    window_chunks: int = 256
    """Chunks (and below, bytes) of one stream input that a warm agent has not acknowledged."""
    window_bytes: int = 1 << 20
    credit_bytes: int = 1 << 20
    """That a warm agent may send on one output pin ahead of the reader."""
    unread_bytes: int = 8 << 20
    """Of a warm invocation's events after which it is ended with AGENT_FLOOD: it ignored its
    credit.
    """
