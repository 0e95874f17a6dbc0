"""What an agent process is given: its environment, built from nothing, and its input. Pure."""

import sys
from pathlib import Path
from typing import Any

import msgspec

from mentatlab.protocol.agent import AgentProgram
from mentatlab.protocol.stdio import MAX_ENV_BYTES
from mentatlab.runners.port import Invocation

PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"


def live_inputs(invocation: Invocation) -> dict[str, Any]:
    """The inputs, with `{"type": "stream", "live": true}` on pins whose elements come as chunks."""
    streams = {pin: {"type": "stream", "live": True} for pin in invocation.stream_inputs}
    return {**invocation.inputs, **streams}


def base(program: AgentProgram, invocation: Invocation) -> dict[str, str]:
    """What a one-shot process and a warm worker have in common."""
    declared = {name: invocation.env[name] for name in program.env if name in invocation.env}
    fixed = {"PATH": PATH, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "AGENT_ID": program.id}
    return {**fixed, **dict(program.fixed_env), **declared}


def warm(invocation: Invocation) -> dict[str, str]:
    return {**base(invocation.program, invocation), "MENTAT_WARM": "1"}


def one_shot(invocation: Invocation, body: dict[str, Any]) -> dict[str, str]:
    """Copies of the context, and of the whole input where it is at most 64 KiB."""
    context = invocation.context
    copies = {
        "RUN_ID": context.run_id,
        "NODE_ID": context.node_id,
        "ATTEMPT": str(context.attempt),
        "MENTAT_OUT": context.out_dir,
        "MENTAT_TOKEN": context.token,
        "MENTAT_URL": context.url,
    }
    documents = {
        "RESUME_STATE": context.resume_state,
        "AGENT_INPUT": body,
        "INPUT_SPEC": {**invocation.params, **live_inputs(invocation)},
        "INPUT_CONTEXT": context,
    }
    encoded = {k: msgspec.json.encode(v).decode() for k, v in documents.items() if v is not None}
    small = {k: v for k, v in encoded.items() if len(v.encode()) <= MAX_ENV_BYTES}
    return {**base(invocation.program, invocation), **copies, **small}
