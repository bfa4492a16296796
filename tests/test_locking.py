"""A lock pins what a recipe names, and a run is held to it."""

import json
import shutil
import subprocess
import sys

import pytest

from quantkit import locking, recipe_file, recipe_lock, runs
from quantkit.errors import InputError
from quantkit.job import Options
from quantkit.progress import silent


@pytest.fixture
def recipe(pico, tmp_path):
    source = shutil.copytree(pico("llama"), tmp_path / "source")
    (tmp_path / "text.txt").write_text("words to measure on " * 2000)
    path = tmp_path / "r.yaml"
    path.write_text(
        f"source: {source}\ntargets: [{{format: gguf, type: Q4_0, imatrix: true}}]\nchecks: false\n"
        f"calibration: {{tokens: 512, length: 128, text: {tmp_path / 'text.txt'}}}\n"
    )
    return path


def lock(path):
    found = locking.lock(recipe_file.read(path), silent)
    recipe_lock.beside(path).write_text(found.model_dump_json())
    return found


def run(path, **options):
    document = recipe_lock.apply(recipe_file.read(path), path, required=True)
    return runs.convert(document, Options(work_dir=path.parent / "build", threads=1, **options))


def test_a_run_is_held_to_its_lock(recipe):
    found = lock(recipe)
    assert list(found.source.digests) == [
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "licence",
    ]  # fmt: skip
    assert [pin.uri for pin in found.texts] == [str(recipe.parent / "text.txt")]
    manifest = run(recipe)
    assert json.loads(manifest.recipe.lock) == found.model_dump(mode="json")
    assert (recipe.parent / "build/r/r.lock").is_file()
    assert (recipe.parent / "build/r/r.yaml").read_text() == recipe.read_text()


def test_everything_that_changed_is_named_and_nothing_is_made(recipe):
    lock(recipe)
    (recipe.parent / "text.txt").write_text("other words " * 2000)
    weights = recipe.parent / "source/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match="the lock does not hold") as caught:
        run(recipe)
    assert "model.safetensors is" in str(caught.value)
    assert "text.txt: text is" in str(caught.value)
    assert not list((recipe.parent / "build").rglob("*.gguf"))


def test_a_lock_of_another_recipe_or_none_is_refused(recipe):
    with pytest.raises(InputError, match=r"has no r\.lock"):
        run(recipe)
    lock(recipe)
    recipe.write_text(recipe.read_text().replace("checks: false", "checks: {perplexity: {chunks: 2}}"))
    with pytest.raises(InputError, match="other sources or texts than"):
        run(recipe)
    recipe_lock.beside(recipe).write_text("{")
    with pytest.raises(InputError, match="is no lock"):
        run(recipe)


def test_locked_is_for_a_recipe_with_its_own_source(recipe):
    words = ["run", recipe, "--source", recipe.parent / "source", "--locked"]
    done = subprocess.run([sys.executable, "-m", "quantkit", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--locked is for a recipe with a source of its own" in done.stderr


def test_pins_take_the_place_of_every_uri_of_a_text():
    text = (
        "source: x\ntargets: [{format: gptq}]\n"
        "calibration: {text: [{text: a, share: 0.5}, {text: self, share: 0.5}]}\n"
        "checks: {perplexity: {text: a}, divergence: {second: b}}\n"
    )
    document = recipe_file.parse(text, "r", "r.yaml")
    assert recipe_lock.texts(document.recipe) == ("a", "b")
    pins = {name: recipe_lock.Pin(uri=name, pinned=f"{name}@1", digests={}) for name in ("x", "a", "b")}
    locked = recipe_lock.Lock(quantkit="0", source=pins["x"], texts=(pins["a"], pins["b"]), files=())
    found = recipe_lock.pinned(document.recipe, locked)
    assert found.source == "x@1"
    assert [uri for uri, _ in found.calibration.counts()] == ["a@1", "self"]
    assert (found.checks.perplexity.text, found.checks.divergence.second) == ("a@1", "b@1")
