"""quantkit: one recipe in, verified quantised artefacts and their hardware report out, on a CPU.

    manifest = quantkit.convert("recipes/demo.yaml")
    manifest = quantkit.convert("path/or/hf-id", format="gguf", type="Q4_K_M", out="dir")
    plan = quantkit.plan("recipes/demo.yaml")

Errors are those of `quantkit.errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.manifest import Manifest
from quantkit.recipe import Recipe
from quantkit.version import __version__

if TYPE_CHECKING:
    from quantkit.pipeline import Options
    from quantkit.planning import Plan
    from quantkit.recipe_file import Document

__all__ = ["Manifest", "Recipe", "__version__", "convert", "plan"]


def convert(
    recipe_or_source: str | Path,
    *,
    format: str = "gguf",
    type: str | None = None,
    out: str | Path | None = None,
    checks: bool = True,
    only: str | Sequence[str] = (),
    threads: int = 0,
    force: bool = False,
    work_dir: str | Path = "build",
) -> Manifest:
    """Run a recipe file, or make one artefact of a source with `type`; publish it when every gate has passed.

    recipe_or_source: a .yaml file; or hf://org/name@revision, org/name, a folder, a .gguf file, package://module/file.gguf.
    out: where an artefact without a recipe is published. checks=False measures nothing, and the manifest says so; a recipe
    has its own `publish` and `checks`. threads: 0 is one per core.
    Raises CheckFailed after the report was written, and every other error of `quantkit.errors`.
    """
    from quantkit import pipeline, sealing

    document = _document(recipe_or_source, format, type, out, checks)
    options = _options(only, threads, force, work_dir)
    manifest = pipeline.convert(document, options)
    sealing.judge(manifest, pipeline.build_folder(document, options))
    return manifest


def plan(
    recipe_or_source: str | Path,
    *,
    format: str = "gguf",
    type: str | None = None,
    only: str | Sequence[str] = (),
    threads: int = 0,
    work_dir: str | Path = "build",
) -> Plan:
    """What `convert` would make, tensor by tensor, and what it would need; no weight is read."""
    from quantkit import pipeline, source

    document = _document(recipe_or_source, format, type, None, True)
    snapshot = source.describe(document.recipe.source)
    return pipeline.make_plan(document, snapshot, _options(only, threads, False, work_dir))


def _document(given: str | Path, format: str, type: str | None, out: str | Path | None, checks: bool) -> Document:
    from quantkit import recipe_file

    is_recipe = Path(given).suffix in (".yaml", ".yml")
    path, source = (Path(given), None) if is_recipe else (None, str(given))
    return recipe_file.of_call(path, source, format=format, type=type, out=None if out is None else Path(out), checks=checks)


def _options(only: str | Sequence[str], threads: int, force: bool, work_dir: str | Path) -> Options:
    from quantkit.pipeline import Options

    names = (only,) if isinstance(only, str) else tuple(only)
    return Options(work_dir=Path(work_dir), threads=threads, only=names, force=force)
