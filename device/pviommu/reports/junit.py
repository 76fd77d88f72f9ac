"""Writes JUnit XML, which CI systems show."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence

from .ktap import KtapRun, Outcome, TestResult

__all__ = ["written"]

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def written(
    name: str,
    run: KtapRun,
    *,
    prefix: str,
    seconds: float,
    properties: Mapping[str, str] | None = None,
    broken: Sequence[str] = (),
) -> bytes:
    """The document of one suite: a case for each test that counts, whose class begins with ``prefix``, by which CI
    systems put cases of several suites together.

    ``broken``: why a run without a failed test has not passed all the same, which is an error of the suite then.
    """
    counts = run.counts()
    suite = ElementTree.Element(
        "testsuite",
        name=name,
        tests=str(counts.total + bool(broken)),
        failures=str(counts.failed),
        errors=str(int(bool(broken))),
        skipped=str(counts.skipped),
        time=f"{seconds:.3f}",
    )
    if properties:
        listed = ElementTree.SubElement(suite, "properties")
        for key, value in properties.items():
            ElementTree.SubElement(listed, "property", name=key, value=_clean(value))
    suite.extend(_case(".".join((prefix, *path[:-1])), result) for path, result in run.leaves())
    if broken:
        # A run that broke without a failed test must not look green to a reader of JUnit files.
        case = ElementTree.SubElement(suite, "testcase", classname=_clean(prefix), name="the run is complete")
        error = ElementTree.SubElement(case, "error", message=_clean("; ".join(broken)))
        error.text = _clean("\n".join(broken))
    top = ElementTree.Element("testsuites")
    top.append(suite)
    ElementTree.indent(top)
    document: bytes = ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)
    return document


def _case(class_name: str, result: TestResult) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase", classname=_clean(class_name), name=_clean(result.name), time=f"{result.seconds:.3f}"
    )
    notes = _clean("\n".join(result.diagnostics))
    if result.outcome is Outcome.FAILED:
        message = " ".join((result.directive, result.reason)).strip() or "not ok"
        ElementTree.SubElement(case, "failure", message=_clean(message)).text = notes
    elif result.outcome is Outcome.SKIPPED:
        ElementTree.SubElement(case, "skipped", message=_clean(result.reason or result.directive))
    elif notes:
        ElementTree.SubElement(case, "system-out").text = notes
    return case


def _clean(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
