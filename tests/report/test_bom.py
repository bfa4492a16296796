"""The bill of materials is CycloneDX, and names every file with its digest."""

import json

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from report.sample_manifest import sample

from quantkit.report.bom import bom


def test_it_is_cyclonedx_to_the_letter() -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom(sample()))) is None


def test_every_file_its_figures_and_what_it_was_made_of_are_named() -> None:
    said, found = sample(), bom(sample())
    digests = {each["content"] for component in found["components"] for each in component.get("hashes", [])}
    assert {target.sha256 for target in said.targets} <= digests
    assert set(said.text.values()) <= digests
    metrics = found["components"][0]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert [metric["type"] for metric in metrics] == ["perplexity ratio", "mean Kullback-Leibler divergence, nats"]
    assert float(metrics[1]["confidenceInterval"]["lowerBound"]) < float(metrics[1]["value"])
    assert found == bom(sample())
