"""report.json: figures as data, valid under the schema that is printed, and nothing that a manifest has already."""

from __future__ import annotations

import json
import math

import pytest
from report.sample_manifest import coded, sample

from quantkit.report import contents, figures


def test_it_says_what_the_page_says() -> None:
    report = contents.of(sample())
    good, bad = report.targets
    assert (report.verdict, good.verdict, bad.verdict) == ("fail", "pass", "fail")
    assert report.sentence == "2 artefacts: 1 passed every gate, 1 failed."
    assert good.quality.mean_kld == contents.Measure(value=0.0164, error=0.0164 / 12)
    assert good.quality.cosine is None
    assert good.speed is not None
    assert good.speed.decode is not None
    assert good.speed.decode.ratio == pytest.approx(1.86)
    assert good.speed.decode.baseline_tokens_per_s == 54
    assert {fit.machine_gib: fit.context for fit in good.fits} == figures.fits(sample().targets[0])
    measured = [point for point in good.memory if point.measured is not None]
    assert [point.error for point in measured] == [pytest.approx(1 / 1.013 - 1, abs=1e-6)] * 2
    assert [ceiling.measured_here for ceiling in good.ceilings] == [False, True]
    assert len(good.layers) == 30 * 7
    assert len(good.samples) == 2
    assert {fallback.type for fallback in good.fallbacks} == {"Q5_0"}


def test_reading_it_back_gives_the_same() -> None:
    report = contents.of(sample())
    assert contents.Report.model_validate_json(report.model_dump_json()) == report


def test_its_schema_knows_every_field_of_it() -> None:
    schema, document = contents.schema(), json.loads(contents.of(sample()).model_dump_json())
    assert schema["title"] == "Report"
    assert set(document) == set(schema["properties"]) == set(schema["required"])
    assert document["schema_version"] == contents.SCHEMA_VERSION
    for target in document["targets"]:
        assert set(target) == set(schema["$defs"]["Target"]["properties"])


def test_it_is_no_copy_of_the_manifest() -> None:
    text = contents.of(sample()).model_dump_json()
    assert len(text) < len(sample().model_dump_json()) / 2
    assert sample().recipe.text not in text


def test_what_was_not_measured_is_null() -> None:
    manifest = sample()
    bare = manifest.targets[0].model_copy(update={"checks": [], "speed": None, "memory": [], "samples": [], "tensors": []})
    [target] = contents.of(manifest.model_copy(update={"targets": [bare]})).targets
    assert (target.speed, target.memory, target.fits, target.layers, target.ceilings) == (None, [], [], [], [])
    assert set(target.quality.model_dump().values()) == {None}


def test_figures_that_json_cannot_hold_are_left_out() -> None:
    manifest = sample()
    tensors = [tensor.model_copy(update={"relative_error": math.nan}) for tensor in manifest.targets[0].tensors]
    broken = manifest.targets[0].model_copy(update={"tensors": tensors})
    report = contents.of(manifest.model_copy(update={"targets": [broken]}))
    assert report.targets[0].layers == []
    json.loads(report.model_dump_json(), parse_constant=pytest.fail)


def test_peers_are_data_too() -> None:
    report = contents.of(coded())
    assert [(peer.maker, peer.type) for peer in report.peers] == [("llama.cpp", "Q4_K_M"), ("llama.cpp", "Q2_K")]
    first = report.peers[0]
    assert first.quality.mean_kld == contents.Measure(value=0.04, error=0.04 / 12)
    assert first.kld_ratios == pytest.approx({"gguf-Q4_K_M": 0.41, "gguf-Q4_K_M-gptq": 0.25})
    assert [(target.codes, target.mark) for target in report.targets[:2]] == [("search", ""), ("gptq", "gptq")]
    assert set(report.reach) == {"Q4_K_M", "Q4_K_M gptq", "Q2_K", "Q2_K gptq"}
    assert contents.Report.model_validate_json(report.model_dump_json()) == report
    assert contents.of(sample()).peers == []
