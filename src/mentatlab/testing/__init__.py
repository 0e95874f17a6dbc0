"""Shipped for tests and plug-in authors: contracts of the ports, the house below HTTP."""
