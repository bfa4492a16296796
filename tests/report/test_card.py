"""The model card and its neighbours."""

import hashlib
import subprocess
from pathlib import Path

import pytest
import yaml
from report.sample_manifest import HOSTILE, coded, sample, several

from quantkit.manifest import Manifest
from quantkit.report import card


def matter(manifest: Manifest) -> dict[str, object]:
    _, front, _ = card.card(manifest).split("---\n", 2)
    return yaml.safe_load(front)


def with_source(**fields: object) -> Manifest:
    manifest = sample()
    return manifest.model_copy(update={"source": manifest.source.model_copy(update=fields)})


def test_front_matter_is_what_the_hub_reads() -> None:
    assert matter(sample()) == {
        "base_model": "example/Sample-135M-Instruct",
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "llama.cpp", "quantized", "llama"],
    }


def test_an_own_licence_is_inherited_with_name_and_link() -> None:
    own = with_source(licence="other", licence_name="sample-community", licence_link="https://example.org/LICENSE")
    found = matter(own)
    assert (found["license"], found["license_name"], found["license_link"]) == (
        "other", "sample-community", "https://example.org/LICENSE",
    )  # fmt: skip


def test_an_unknown_licence_is_left_out_and_said() -> None:
    manifest = sample(licence=None)
    assert "license" not in matter(manifest)
    assert "does not say under which licence" in card.card(manifest)


def test_a_source_without_repository_names_no_base_model() -> None:
    assert "base_model" not in matter(with_source(repo=None))


def test_what_was_not_measured_is_not_claimed() -> None:
    manifest = sample()
    bare = manifest.targets[0].model_copy(update={"checks": [], "speed": None, "baseline": None, "verdict": "unchecked"})
    text = card.card(manifest.model_copy(update={"targets": [bare], "text": {}}))
    assert "Nothing was measured on these files" in text
    assert "The results were measured" not in text
    assert "Checked on" not in text
    assert "Speed and memory are those of" not in text


def test_front_matter_cannot_be_broken_out_of() -> None:
    found = matter(with_source(licence="mit\n---\nbase_model: evil/model", repo="a/b: c"))
    assert found["base_model"] == "a/b: c"


def test_text_from_outside_is_no_markup() -> None:
    text = card.card(sample(name=f"{HOSTILE} | [x](javascript:1)"))
    before_recipe = text.partition("The recipe, as typed")[0]
    assert "<script" not in before_recipe
    assert "[x](" not in before_recipe


def test_a_recipe_cannot_end_its_own_fence() -> None:
    manifest = sample()
    recipe = manifest.recipe.model_copy(update={"text": "a: 1\n```\n<script>\n````\n"})
    text = card.card(manifest.model_copy(update={"recipe": recipe}))
    assert "`````yaml\na: 1\n```\n<script>\n````\n`````" in text


def test_tables_have_as_many_cells_as_heads() -> None:
    for block in card.card(sample()).split("\n\n"):
        if block.startswith("| "):
            assert len({line.count(" |") for line in block.splitlines()}) == 1, block


def test_sha256sums_is_what_sha256sum_checks(tmp_path: Path) -> None:
    for name in ("b.gguf", "a file.json"):
        (tmp_path / name).write_text(name)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    (tmp_path / "SHA256SUMS").write_text(card.sha256sums(digests))
    try:
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no sha256sum on this machine")


def test_the_card_has_the_content_of_the_page() -> None:
    text = card.card(several())
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads == [
        "## Results", "## Can I run it?", "## How to run", "## Checks", "## Memory", "## Errors by kind of tensor",
        "## Answers", "## Limits", "## Where it comes from",
    ]  # fmt: skip
    assert r"| Q8\_0 | cloze | · report | right 78.0 %" in text
    assert "-1.2 ± 0.4%" in text
    assert "| w4g64 | `mlp.experts.*.down_proj` |" in text
    assert "Memory of 46 GB/s sets a ceiling to decoding" in text


def test_answers_are_no_markup() -> None:
    text = card.card(several()).partition("## Answers")[2].partition("## Limits")[0]
    assert "<script" not in text
    assert "| original | The Nile, the Rhine, the Danube. |" in text


def test_sections_without_figures_are_left_out() -> None:
    manifest = sample()
    changes = {"checks": [], "speed": None, "memory": [], "samples": [], "tensors": [], "verdict": "unchecked"}
    text = card.card(manifest.model_copy(update={"targets": [manifest.targets[0].model_copy(update=changes)]}))
    assert not {"## Checks", "## Memory", "## Errors by kind of tensor", "## Answers"} & set(text.splitlines())


def test_others_files_of_the_same_types_are_beside() -> None:
    text = card.card(coded()).partition("## Others' files of the same types")[2].partition("## Can I run it?")[0]
    assert r"| llama.cpp Q4\_K\_M | 105.5 MB | 6.27 |" in text
    assert r"| Q4\_K\_M 0.41×, Q4\_K\_M gptq 0.25× |" in text
    assert "deleted" in text
    assert "Others' files" not in card.card(sample())
