"""Runs flows of multimodal AI agents: typed media pins, live streams, durable runs."""

__version__ = "0.1.0"
