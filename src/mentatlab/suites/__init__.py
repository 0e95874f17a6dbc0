"""Suites of end-to-end tests in YAML: read and checked whole, run against a server, reported.

`model` and `plan` are pure, `checks` judges what came out, `running` talks to a server, `reports`
writes JSON and JUnit. `mentatlab test` is the command.
"""

from mentatlab.suites.model import Suite, load_suite
from mentatlab.suites.running import CaseResult, SuiteResult, run_suite

__all__ = ["CaseResult", "Suite", "SuiteResult", "load_suite", "run_suite"]
