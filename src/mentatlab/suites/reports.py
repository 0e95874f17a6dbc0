"""Results for programs: JSON, and JUnit's XML as CI systems read it. Pure."""

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from mentatlab.suites.running import CaseResult, SuiteResult


def report(suites: Sequence[SuiteResult]) -> dict[str, Any]:
    return {
        "passed": all(suite.passed for suite in suites),
        "suites": [
            {
                "name": suite.name,
                "stand_ins": dict(suite.stand_ins),
                "tests": [_case(case) for case in suite.cases],
            }
            for suite in suites
        ],
    }


def _case(case: CaseResult) -> dict[str, Any]:
    return {
        "name": case.name,
        "passed": case.passed,
        "seconds": round(case.seconds, 3),
        "run_id": case.run_id,
        "state": case.state,
        "error": case.error,
        "failures": [{"where": f.where, "message": f.message} for f in case.failures],
        "outputs": dict(case.outputs),
    }


def junit(suites: Sequence[SuiteResult]) -> bytes:
    root = ElementTree.Element("testsuites")
    for suite in suites:
        counts = {
            "tests": len(suite.cases),
            "failures": sum(bool(case.failures) and not case.error for case in suite.cases),
            "errors": sum(bool(case.error) for case in suite.cases),
            "time": f"{sum(case.seconds for case in suite.cases):.3f}",
        }
        attributes = {name: str(value) for name, value in counts.items()}
        place = ElementTree.SubElement(root, "testsuite", {"name": suite.name, **attributes})
        for case in suite.cases:
            _add_case(place, suite.name, case)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _add_case(place: ElementTree.Element, suite: str, case: CaseResult) -> None:
    fields = {"classname": suite, "name": case.name, "time": f"{case.seconds:.3f}"}
    element = ElementTree.SubElement(place, "testcase", fields)
    if case.error:
        ElementTree.SubElement(element, "error", {"message": _clean(case.error)})
    elif case.failures:
        message = _clean("\n".join(map(str, case.failures)))
        ElementTree.SubElement(element, "failure", {"message": message}).text = message
    if case.run_id:
        ElementTree.SubElement(element, "system-out").text = f"run {case.run_id}"


def _clean(text: str) -> str:
    """XML has no control characters."""
    return "".join(c for c in text if c in "\n\t" or c >= " ")
