"""llama.cpp's own files of a recipe's types: asked for, made with the same importance, measured as ours are, and gone after."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quantkit
from quantkit import baseline, footprint_run, peer_files, pipeline, recipe_file, source
from quantkit.engines import llama_cpp_quantizer
from quantkit.engines.llama_cpp_quantizer import Wish
from quantkit.errors import ResourceError, UnresolvedError
from quantkit.formats.gguf import layout, writer
from quantkit.formats.gguf.mixture import FILE_TYPE
from quantkit.job import Options
from quantkit.manifest import Manifest
from quantkit.planning import Plan
from quantkit.progress import silent
from quantkit.report.contents import Report

PEERS: dict[str, Any] = {"peers": ["llama.cpp"]}
SEARCH = {"format": "gguf", "type": "Q4_0", "imatrix": True}
GPTQ = {**SEARCH, "codes": "gptq"}


def document(model: Path, *targets: dict[str, Any], **checks: Any) -> dict[str, Any]:
    measured = {"perplexity": {"chunks": 2}, "latency": {"rounds": 1, "prompt": 32, "decode": 8}, "memory": {"contexts": []}}
    found = {"source": str(model), "targets": targets, "checks": measured | checks, "prompts": ["Hello"]}
    used = any(target.get("imatrix") is True or target.get("codes") == "gptq" for target in targets)
    return found | ({"calibration": {"text": "builtin:python-docs", "tokens": 4096}} if used else {})


def planned(model: Path, place: Path, *targets: dict[str, Any], **checks: Any) -> Plan:
    text = recipe_file.parse(json.dumps(document(model, *targets, **checks)), "pico", "pico.yaml")
    return pipeline.make_plan(text, source.describe(str(model)), Options(work_dir=place, threads=1))


def test_one_file_serves_targets_that_differ_in_codes_alone(pico: Callable[[str], Path], tmp_path: Path) -> None:
    static, pure = {**SEARCH, "imatrix": False}, {"format": "gguf", "type": "Q8_0", "pure": True}
    others = {"format": "gguf", "type": "F16"}, {"format": "gguf", "type": "auto", "bits_per_weight": 6}
    plan = planned(pico("llama"), tmp_path, SEARCH, GPTQ, static, pure, *others, **PEERS)
    checks = recipe_file.parse(json.dumps(document(tmp_path, SEARCH, **PEERS)), "r", "r").recipe.checks
    found = peer_files.wanted(checks, plan.targets)
    assert [(each.title, len(each.names)) for each in found] == [
        ("llama.cpp Q4_0", 2), ("llama.cpp Q4_0 static", 1), ("llama.cpp Q8_0", 1),
    ]  # fmt: skip
    assert peer_files.wanted(checks.model_copy(update={"peers": ()}), plan.targets) == () if checks else False
    assert peer_files.wanted(None, plan.targets) == ()


def test_the_plan_has_their_disk_time_and_memory(pico: Callable[[str], Path], tmp_path: Path) -> None:
    plain, asked = (planned(pico("llama"), tmp_path, SEARCH, **checks) for checks in ({}, PEERS))
    assert asked.needs.disk - plain.needs.disk == max(target.nbytes or 0 for target in asked.targets)
    assert asked.needs.seconds > plain.needs.seconds
    assert asked.needs.memory >= plain.needs.memory
    assert asked.missing == plain.missing == ()


def test_without_room_for_the_whole_there_is_none(
    pico: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline, "fits", lambda *_: False)
    asked = planned(pico("llama"), tmp_path, SEARCH, **PEERS)
    assert [missing.kind for missing in asked.missing] == ["memory"]
    assert "leave peers out" in asked.missing[0].message
    assert planned(pico("llama"), tmp_path, SEARCH).missing == ()
    path = tmp_path / "pico.yaml"
    path.write_text(json.dumps(document(pico("llama"), SEARCH, **PEERS)), encoding="utf-8")
    with pytest.raises(ResourceError, match="F16 file of the whole model"):
        quantkit.convert(path, work_dir=tmp_path / "build", threads=1)


def test_a_fault_of_its_quantiser_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, more or less")
    with pytest.raises(UnresolvedError, match=r"broken\.gguf"):
        llama_cpp_quantizer.make(tmp_path / "broken.gguf", tmp_path / "out.gguf", Wish(2), importance=None, threads=1)


@pytest.mark.slow
def test_a_run_measures_both_codes_and_llama_cpp_s(pico: Callable[[str], Path], tmp_path: Path) -> None:
    targets = [{**each, "type": type} for type in ("Q4_0", "Q8_0") for each in (SEARCH, GPTQ)]
    path, work = tmp_path / "pico.yaml", tmp_path / "build"
    path.write_text(json.dumps(document(pico("llama3"), *targets, **PEERS)), encoding="utf-8")
    manifest = quantkit.convert(path, work_dir=work, threads=1)
    place = work / "pico"
    assert [target.title for target in manifest.targets] == ["Q4_0", "Q4_0 gptq", "Q8_0", "Q8_0 gptq"]
    assert len({target.file for target in manifest.targets}) == 4
    assert not [file for file in place.rglob("*.gguf") if "peer" in str(file) or "baseline" in str(file)]
    assert not list(place.rglob("*.partial"))
    names = [[target.name for target in manifest.targets[n : n + 2]] for n in (0, 2)]
    assert [(peer.title, peer.targets) for peer in manifest.peers] == [
        ("llama.cpp Q4_0", names[0]), ("llama.cpp Q8_0", names[1]),
    ]  # fmt: skip
    for peer, ours in zip(manifest.peers, manifest.targets[::2], strict=True):
        checks, own = ({check.check: check for check in record.checks} for record in (peer, ours))
        assert set(checks) == {"perplexity", "divergence", "cloze"}
        assert {check.verdict for check in checks.values()} == {"report"}
        assert checks["divergence"].engine == own["divergence"].engine
        assert len(checks["divergence"].chunk_means["kld"]) == 2
        assert checks["perplexity"].values["reference_perplexity"] == own["perplexity"].values["reference_perplexity"]
        assert peer.nbytes == pytest.approx(ours.nbytes, abs=4096)
        assert peer.bits_per_weight == pytest.approx(ours.bits_per_weight, abs=0.01)
    report = Report.model_validate_json((place / "report.json").read_text(encoding="utf-8"))
    assert all(0 < ratio < 1 for ratio in report.peers[0].kld_ratios.values())
    page = (place / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<path class="e d\d"[^>]*><title>(.*?)</title>', page) == [
        "codes: search", "codes: gptq", "llama.cpp, measured here",
    ]  # fmt: skip
    assert "## Others' files of the same types" in (place / "README.md").read_text(encoding="utf-8")
    assert Manifest.read(place / "manifest.json") == manifest
    kept = {file.name: file.stat().st_mtime_ns for file in place.glob("peer-*.json")}
    path.write_text(json.dumps(document(pico("llama3"), *targets[:2], **PEERS)), encoding="utf-8")
    again = quantkit.convert(path, work_dir=work, threads=1)
    assert again.peers == manifest.peers[:1]
    assert {file.name: file.stat().st_mtime_ns for file in place.glob("peer-*.json")} == kept


@pytest.mark.slow
def test_its_memory_is_predicted(smol: Path, tmp_path: Path) -> None:
    snapshot = source.fetch(source.describe(str(smol)), silent)
    plan = layout.plan(baseline.TARGET, "", snapshot, "base")
    base = writer.write(plan, snapshot, tmp_path, importance={}, threads=2, progress=silent)
    need = sum(footprint_run.quantizer_memory(plan.rows).values())
    cost = llama_cpp_quantizer.make(base.path, tmp_path / "out.gguf", Wish(FILE_TYPE["Q4_K_M"]), importance=None, threads=2)
    assert 0.8 * need < cost.peak_rss_bytes < 1.05 * need
