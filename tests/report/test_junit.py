"""JUnit XML: counts, what failed and why, and text that would not be XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from report.sample_manifest import sample

from quantkit.manifest import Manifest
from quantkit.report import junit


def with_check(manifest: Manifest, **changes: object) -> Manifest:
    target = manifest.targets[0]
    checks = [target.checks[0], target.checks[1].model_copy(update=changes)]
    return manifest.model_copy(update={"targets": [target.model_copy(update={"checks": checks})]})


def test_a_suite_for_every_artefact_and_a_case_for_every_check() -> None:
    root = ET.fromstring(junit.render(sample()))
    assert root.attrib["name"] == "quantkit sample"
    assert {key: root.attrib[key] for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "8", "failures": "2", "errors": "0", "skipped": "0",
    }  # fmt: skip
    good, bad = root.findall("testsuite")
    assert [case.attrib["name"] for case in good.findall("testcase")] == ["integrity", "perplexity", "divergence", "latency"]
    assert (good.attrib["name"], good.attrib["failures"], bad.attrib["failures"]) == ("gguf-Q4_K_M", "0", "2")
    assert good.attrib["time"] == "4.200"
    failure = bad.find("testcase[@name='perplexity']/failure")
    assert failure is not None
    assert "ratio 1.3127" in failure.attrib["message"]
    assert bad.findall("testcase")[0].attrib["classname"] == "sample.gguf-Q2_K"


def test_a_case_takes_what_its_check_took_and_a_suite_the_making_too() -> None:
    root = ET.fromstring(junit.render(with_check(sample(), seconds=1.5)))
    [suite] = root.findall("testsuite")
    assert [case.attrib["time"] for case in suite.findall("testcase")] == ["0.000", "1.500"]
    assert (suite.attrib["time"], root.attrib["time"]) == ("5.700", "5.700")


def test_a_manifest_from_before_checks_had_seconds_is_read() -> None:
    document = sample().model_dump()
    for target in document["targets"]:
        for check in target["checks"]:
            del check["seconds"]
    root = ET.fromstring(junit.render(Manifest.model_validate(document)))
    assert {case.attrib["time"] for case in root.iter("testcase")} == {"0.000"}


def test_a_gate_that_cannot_be_decided_is_an_error() -> None:
    [suite] = ET.fromstring(junit.render(with_check(sample(), verdict="unresolved", summary="16 chunks cannot tell")))
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("0", "1")
    error = suite.find("testcase[@name='perplexity']/error")
    assert error is not None
    assert error.attrib == {"message": "16 chunks cannot tell", "type": "unresolved"}


def test_what_nobody_measured_is_skipped() -> None:
    manifest = sample()
    bare = manifest.targets[0].model_copy(update={"checks": [], "verdict": "unchecked"})
    [suite] = ET.fromstring(junit.render(manifest.model_copy(update={"targets": [bare]})))
    assert (suite.attrib["tests"], suite.attrib["skipped"]) == ("1", "1")
    assert suite.find("testcase/skipped") is not None


def test_text_that_is_no_xml_is_made_so() -> None:
    [suite] = ET.fromstring(junit.render(with_check(sample(), verdict="fail", summary='<b>"\x00\x1b[31m & ]]>')))
    failure = suite.find("testcase[@name='perplexity']/failure")
    assert failure is not None
    assert failure.attrib["message"] == '<b>"��[31m & ]]>'
