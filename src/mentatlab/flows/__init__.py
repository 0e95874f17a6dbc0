"""What authors write: manifests and flows, their check before anything runs, and the plan. Pure."""

from mentatlab.flows.check import Lookup, check_flow
from mentatlab.flows.flow import Edge, Flow, Node, load_flow
from mentatlab.flows.manifest import (
    Execution,
    Manifest,
    MultimodalPin,
    ResourceSpec,
    load_manifest,
    resolve_resources,
)
from mentatlab.flows.plan import (
    Plan,
    PlanEdge,
    PlanNode,
    RetryPolicy,
    RunInput,
    Timeouts,
    compile_plan,
)
from mentatlab.flows.validator import ManifestValidator, ValidationMode

__all__ = [
    "Edge",
    "Execution",
    "Flow",
    "Lookup",
    "Manifest",
    "ManifestValidator",
    "MultimodalPin",
    "Node",
    "Plan",
    "PlanEdge",
    "PlanNode",
    "ResourceSpec",
    "RetryPolicy",
    "RunInput",
    "Timeouts",
    "ValidationMode",
    "check_flow",
    "compile_plan",
    "load_flow",
    "load_manifest",
    "resolve_resources",
]
