"""Every shipped recipe is valid, and is planned from its model's config.json and the tensors that transformers' model has."""

import re
import shutil
from pathlib import Path

import pytest

from quantkit import pipeline, recipe_file, source
from quantkit.job import Options

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
CONFIGS = Path(__file__).parent / "configs"


def config_of(path):
    """The config.json of a recipe's model; recipes of one model share it."""
    model = re.sub(r"-(gptq-.*|onnx-.*|int8)$", "-q4", path.stem)
    return CONFIGS / f"{model}.json"


OFFLINE = {"demo", "demo-gptq", "minilm-int8", "smollm2-onnx-int8"}
HUB = [path for path in RECIPES if config_of(path).exists()]

# Bits per weight of llama.cpp's own files of these models (its README; the sizes of published files).
BITS_PER_WEIGHT = {
    "mistral7b-q4": (4.82, 4.83),
    "llama3.1-8b-q4": (4.893, 4.896),
    "tinyllama-q8": (8.50, 8.51),
    "qwen3-0.6b-q4": (4.8, 5.3),
    "mistral7b-gptq-w4g128": (4.59, 4.61),  # 4.156 of the layers' matrices, 16 of embedding and head
    "llama3.1-8b-gptq-w4g128": (5.6, 5.8),
    "mistral7b-onnx-int8": (8.99, 9.03),  # 8 and a float32 scale for every 32 weights; rotary tables count as bytes
    "flan-t5-small-int8": (10.0, 16.0),  # the second feed-forward matrices stay as they are
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_is_valid_and_publishes_to_a_folder(path):
    recipe = recipe_file.read(path).recipe
    assert [str(target.folder) for target in recipe.publish] == [f"artefacts/{path.stem}"]
    if recipe.source.startswith("hf://"):
        assert recipe.source.endswith("@main")
        assert "Put the commit here" in path.read_text()
    assert not re.search(r"\b[0-9a-f]{40}\b", path.read_text()), "no hash that nobody resolved"


def test_every_hub_recipe_has_a_config():
    assert {path.stem for path in HUB} == {path.stem for path in RECIPES} - OFFLINE


EXPORTED = {"flan-t5-small-int8"}  # three graphs of eight layers by the exporter take half a minute


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in EXPORTED else (), id=path.stem) for path in HUB],
)
def test_is_planned_without_a_network(path, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(config_of(path), folder / "config.json")
    document = recipe_file.read(path).with_source(str(folder))
    plan = pipeline.make_plan(document, source.describe(str(folder)), Options(work_dir=tmp_path / "build"))
    assert plan.reconstructed
    assert any("reconstructed" in note for note in plan.notes)
    assert [missing.kind for missing in plan.missing if missing.kind == "weights"]
    low, high = BITS_PER_WEIGHT[path.stem]
    assert low <= plan.targets[0].bits_per_weight <= high
    assert not plan.targets[0].fallbacks
