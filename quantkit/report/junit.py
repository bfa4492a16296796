"""The gates as JUnit XML, which CI services show as tests: a suite for every artefact, a case for every check."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from quantkit.manifest import CheckRecord, Manifest, TargetRecord

_NO_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def render(manifest: Manifest) -> str:
    """A failed gate is a failure, one that cannot be decided an error, an artefact that nobody measured is skipped.

    A case's time is what its check took, as `costs.Laps` counts it; a suite's is that of making the artefact and of its checks.
    """
    suites = [_suite(manifest, target) for target in manifest.targets]
    root = ET.Element("testsuites", {"name": _legal(f"quantkit {manifest.recipe.name}")} | _sums(suites))
    root.extend(suites)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(manifest: Manifest, target: TargetRecord) -> ET.Element:
    cases = [_case(manifest, target, check) for check in target.checks]
    if not cases:
        case = ET.Element("testcase", classname=_legal(f"{manifest.recipe.name}.{target.name}"), name="checks")
        ET.SubElement(case, "skipped", message="nothing was measured: the recipe has no checks")
        cases = [case]
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    seconds = target.seconds + sum(check.seconds for check in target.checks)
    facts = {"name": _legal(target.name), "timestamp": manifest.created[:19], "time": f"{seconds:.3f}"}
    suite = ET.Element("testsuite", facts | {key: str(count) for key, count in counts.items()})
    properties = ET.SubElement(suite, "properties")
    for name, value in (("file", target.file), ("sha256", target.sha256), ("source", manifest.source.uri)):
        ET.SubElement(properties, "property", name=name, value=_legal(value))
    suite.extend(cases)
    return suite


def _case(manifest: Manifest, target: TargetRecord, check: CheckRecord) -> ET.Element:
    names = {"classname": _legal(f"{manifest.recipe.name}.{target.name}"), "name": _legal(check.check)}
    case = ET.Element("testcase", names | {"time": f"{check.seconds:.3f}"})
    said = _legal(check.summary)
    if check.verdict == "fail":
        ET.SubElement(case, "failure", message=said, type="gate")
    elif check.verdict == "unresolved":
        ET.SubElement(case, "error", message=said, type="unresolved")
    out = ET.SubElement(case, "system-out")
    out.text = f"{check.verdict}: {said}\n{_legal(check.engine)}"
    return case


def _sums(suites: list[ET.Element]) -> dict[str, str]:
    sums = {key: str(sum(int(suite.attrib[key]) for suite in suites)) for key in ("tests", "failures", "errors", "skipped")}
    return sums | {"time": f"{sum(float(suite.attrib['time']) for suite in suites):.3f}"}


def _legal(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return _NO_XML.sub("�", text)
