"""Two artefacts beside each other: what is beyond noise, what is within, and what cannot be said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.sample_manifest import sample
from rich.console import Console
from typer.testing import CliRunner

from quantkit import comparing, screen
from quantkit.cli import app
from quantkit.errors import InputError
from quantkit.manifest import CheckRecord, Manifest, TargetRecord

CHUNKS = 16


def measured(shift: float, own: float = 0.0, *, chunks: int = CHUNKS) -> list[CheckRecord]:
    """A divergence whose chunks differ a lot, alike for all; `own` is what they do on their own."""
    shared = np.random.default_rng(7).normal(0.1, 0.03, CHUNKS)[:chunks]
    drawn = np.random.default_rng(1).standard_normal(chunks)
    kld = shared + shift + own * (drawn - drawn.mean())
    error = float(kld.std(ddof=1) / chunks**0.5)
    values: dict[str, float | int | str] = {"mean_kld": float(kld.mean()), "mean_kld_error": error, "chunks": chunks}
    return [
        CheckRecord(
            check="divergence", verdict="report", summary="", values=values, limits={}, engine="an engine",
            chunk_means={"kld": kld.tolist()},
        )
    ]  # fmt: skip


def one(**changes: Any) -> Manifest:
    manifest = sample()
    return manifest.model_copy(update={"targets": [manifest.targets[0].model_copy(update=changes)]})


def saved(place: Path, manifest: Manifest) -> Path:
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    for target in manifest.targets:
        (place / target.file).parent.mkdir(parents=True, exist_ok=True)
        (place / target.file).touch()
    return place


def compared(tmp_path: Path, old: Manifest, new: Manifest) -> comparing.Comparison:
    return comparing.compare(saved(tmp_path / "old", old), saved(tmp_path / "new", new))


def difference(found: comparing.Comparison, name: str) -> comparing.Difference:
    return next(each for each in found.pairs[0].differences if each.name == name)


@pytest.mark.parametrize(
    ("shift", "verdict"), [(-0.005, "better"), (0.005, "worse"), (0.0002, "no difference beyond noise"), (0.0, "same")]
)
def test_chunks_are_paired_so_that_what_they_share_cancels(tmp_path: Path, shift: float, verdict: str) -> None:
    own = 0.001 if shift else 0.0
    found = difference(compared(tmp_path, one(checks=measured(0)), one(checks=measured(shift, own))), "mean KLD")
    assert (found.how, found.verdict) == ("paired", verdict)
    assert found.noise is not None
    assert found.noise < 0.002, "either mean alone is known to 0.015"


def test_another_text_leaves_independent_errors(tmp_path: Path) -> None:
    other = one(checks=measured(-0.005, 0.001)).model_copy(update={"text": {"another": "12" * 32}})
    found = compared(tmp_path, one(checks=measured(0)), other)
    each = difference(found, "mean KLD")
    assert (each.how, each.verdict) == ("independent", "no difference beyond noise")
    assert each.noise == pytest.approx(2.13 * np.hypot(*(0.03 / 4, 0.03 / 4)), rel=0.5)
    assert any("texts differ" in note for note in found.notes)


def test_more_chunks_cannot_be_paired(tmp_path: Path) -> None:
    found = compared(tmp_path, one(checks=measured(0, chunks=8)), one(checks=measured(-0.005, 0.001)))
    assert difference(found, "mean KLD").how == "independent"


def test_manifests_without_chunk_means_are_compared_too(tmp_path: Path) -> None:
    found = compared(tmp_path, one(), sample().model_copy(update={"targets": [sample().targets[1]]}))
    assert difference(found, "mean KLD").verdict == "worse"
    assert difference(found, "perplexity ratio").how == "independent"
    assert difference(found, "size").verdict == "better"
    assert found.pairs[0].old == "gguf-Q4_K_M"
    assert found.pairs[0].new == "gguf-Q2_K"


def test_a_perplexity_ratio_is_paired_in_its_logarithm(tmp_path: Path) -> None:
    def checks(log_ratio: float) -> list[CheckRecord]:
        dice = np.random.default_rng(3)
        reference = dice.normal(2.5, 0.4, CHUNKS)
        nll = reference + log_ratio + 0.001 * dice.standard_normal(CHUNKS)
        values = {"ratio": float(np.exp((nll - reference).mean())), "ratio_error": 0.01, "chunks": CHUNKS}
        means = {"nll": nll.tolist(), "nll_reference": reference.tolist()}
        return [
            CheckRecord(
                check="perplexity", verdict="report", summary="", values=values, limits={}, engine="", chunk_means=means
            )
        ]

    found = difference(compared(tmp_path, one(checks=checks(0.01)), one(checks=checks(0.03))), "perplexity ratio")
    assert (found.how, found.verdict) == ("paired", "worse")
    assert found.change == pytest.approx(np.exp(0.03) - np.exp(0.01), rel=0.1)


def timed(target: TargetRecord, least: float, ratio: float, most: float) -> dict[str, Any]:
    kept = [check for check in target.checks if check.check != "latency"]
    values = {"decode_ratio": ratio, "decode_ratio_min": least, "decode_ratio_max": most}
    return {
        "checks": [
            *kept,
            CheckRecord(check="latency", verdict="report", summary="", values=values, limits={}, engine=""),
        ]
    }


@pytest.mark.parametrize(
    ("rounds", "verdict"),
    [((2.2, 2.3, 2.4), "better"), ((1.2, 1.3, 1.4), "worse"), ((1.8, 1.9, 2.3), "no difference beyond noise")],
)
def test_speed_is_judged_by_its_rounds(tmp_path: Path, rounds: tuple[float, float, float], verdict: str) -> None:
    target = sample().targets[0]
    found = compared(tmp_path, one(**timed(target, 1.7, 1.8, 2.0)), one(**timed(target, *rounds)))
    assert difference(found, "decode over the unquantised").verdict == verdict
    assert difference(found, "decode, tokens/s").verdict == "not comparable"
    assert difference(found, "prefill over the unquantised").note == "the spread over rounds is not known"


def test_types_that_changed_are_listed_by_tensor(tmp_path: Path) -> None:
    tensors = sample().targets[0].tensors
    changed = [tensors[0].model_copy(update={"type": "Q6_K"}), *tensors[1:-1]]
    [pair] = compared(tmp_path, one(), one(tensors=changed)).pairs
    assert pair.retyped == ((tensors[0].name, "Q8_0", "Q6_K"), (tensors[-1].name, tensors[-1].type, None))
    assert pair.retypings() == [("Q8_0", "Q6_K", [tensors[0].name]), (tensors[-1].type, None, [tensors[-1].name])]


def test_the_screen_folds_the_names_of_blocks(tmp_path: Path) -> None:
    tensors = sample().targets[0].tensors
    changed = [
        tensor.model_copy(update={"type": "Q6_K"}) if tensor.name.endswith("ffn_down.weight") else tensor for tensor in tensors
    ]
    console = Console(record=True, width=200)
    screen.show_comparison(console, compared(tmp_path, one(), one(tensors=changed)))
    assert "30 tensors Q4_K -> Q6_K: blk.{0-29}.ffn_down.weight" in console.export_text()


def test_artefacts_are_matched_by_name_and_named_by_file(tmp_path: Path) -> None:
    old, new = saved(tmp_path / "old", sample()), saved(tmp_path / "new", one())
    found = comparing.compare(old, new)
    assert [(pair.old, pair.new, pair.same_bytes) for pair in found.pairs] == [("gguf-Q4_K_M", "gguf-Q4_K_M", True)]
    assert found.only_old == ("gguf-Q2_K",)
    second = sample().targets[1].file
    assert [(pair.old, pair.new) for pair in comparing.compare(old / second, new).pairs] == [("gguf-Q2_K", "gguf-Q4_K_M")]
    assert comparing.compare(old / "manifest.json", new).pairs == found.pairs


def test_a_folder_of_an_artefact_has_its_manifest_beside_it(tmp_path: Path) -> None:
    target = sample().targets[0]
    file = target.files[0].model_copy(update={"name": "gptq-w4/model.safetensors"})
    place = saved(tmp_path / "old", sample().model_copy(update={"targets": [target.model_copy(update={"files": [file]})]}))
    assert len(comparing.compare(place / "gptq-w4", place).pairs) == 1


def test_what_is_no_artefact_is_refused(tmp_path: Path) -> None:
    place = saved(tmp_path / "old", sample())
    for wrong in (tmp_path / "none", tmp_path, place / "other.gguf"):
        with pytest.raises(InputError, match="give what a run made"):
            comparing.compare(place, wrong)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text('{"schema_version": 1}', encoding="utf-8")
    with pytest.raises(InputError, match="no manifest that this version"):
        comparing.compare(place, tmp_path / "broken")
    renamed = [target.model_copy(update={"name": f"other-{target.name}"}) for target in sample().targets]
    with pytest.raises(InputError, match="no artefact in common"):
        comparing.compare(place, saved(tmp_path / "new", sample().model_copy(update={"targets": renamed})))


def test_the_command_line_says_it_in_a_table_and_in_json(tmp_path: Path) -> None:
    places = [str(saved(tmp_path / str(n), one(checks=measured(n * 0.005, n * 0.001)))) for n in (0, 1)]
    done = CliRunner().invoke(app, ["check", *places, "--json"])
    assert done.exit_code == 0, done.output
    [pair] = json.loads(done.output)["pairs"]
    kld = next(row for row in pair["differences"] if row["name"] == "mean KLD")
    assert (kld["verdict"], kld["how"]) == ("worse", "paired")
    assert kld["change"] == pytest.approx(0.005, abs=0.001)
    console = Console(record=True, width=200)
    screen.show_comparison(console, comparing.compare(*map(Path, places)))
    [line] = [line for line in console.export_text().splitlines() if line.startswith("mean KLD")]
    assert "worse (±" in line
    assert "paired)" in line
