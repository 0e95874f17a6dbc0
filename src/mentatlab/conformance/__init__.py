"""The conformance kit: cases as data, and what plays them against any deployment.

Black box: it speaks HTTP and WebSocket, and knows nothing of the server's code.
"""

from mentatlab.conformance.cases import Case, load_cases, shipped_cases
from mentatlab.conformance.runner import Outcome, Result, play_cases, selected
from mentatlab.conformance.steps import VERBS

__all__ = [
    "VERBS",
    "Case",
    "Outcome",
    "Result",
    "load_cases",
    "play_cases",
    "selected",
    "shipped_cases",
]
