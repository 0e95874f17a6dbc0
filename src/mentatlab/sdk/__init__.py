"""What an agent author imports. Needs msgspec and the standard library only.

from mentatlab.sdk import Agent, run

class Upper(Agent):
    def process(self, inputs):
        return {"text": inputs["text"].upper()}

if __name__ == "__main__":
    run(Upper)
"""

from mentatlab.sdk.agent import Agent, AgentError, BaseAgent, MultimodalAgent, StreamingAgent
from mentatlab.sdk.inputs import InputStream, Item
from mentatlab.sdk.session import run

__all__ = [
    "Agent",
    "AgentError",
    "BaseAgent",
    "InputStream",
    "Item",
    "MultimodalAgent",
    "StreamingAgent",
    "run",
]
