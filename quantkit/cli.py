"""The command line: parse, one call, print. Machine output is one JSON document on stdout, everything else goes to stderr."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from quantkit import ci, comparing, doctor, pipeline, recipe_file, screen
from quantkit import recipe as recipes
from quantkit.errors import InputError, QuantkitError
from quantkit.pipeline import Options
from quantkit.progress import shown
from quantkit.report import contents
from quantkit.source import cache, describe
from quantkit.version import __version__

app = typer.Typer(
    help="Quantise open models on a CPU: a recipe in, verified artefacts and their hardware report out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
err = Console(stderr=True)
page = Console(width=None if sys.stdout and sys.stdout.isatty() else 240)  # in a pipe, one line a row
INTERRUPTED, TERMINATED = 130, 143

RecipeArgument = Annotated[Path | None, typer.Argument(metavar="[RECIPE.yaml]", help="a recipe; or give --source and --type")]
Source = Annotated[str | None, typer.Option(help="the source, in place of the recipe's: hf://org/name@rev, a folder, a .gguf")]
Format = Annotated[str, typer.Option(help="without a recipe: the format")]
Type = Annotated[str | None, typer.Option(help="without a recipe: the type, e.g. Q4_K_M")]
Out = Annotated[Path | None, typer.Option(help="without a recipe: the folder to publish to")]
Only = Annotated[list[str] | None, typer.Option(help="only this target (its name or type); may be repeated")]
WorkDir = Annotated[Path, typer.Option(help="where things are made; failed runs stay here, report included")]
Junit = Annotated[Path | None, typer.Option(help="write the gates there as JUnit XML, whatever their verdict")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run(
    recipe_path: RecipeArgument = None,
    source: Source = None,
    format: Format = "gguf",
    type: Type = None,
    out: Out = None,
    checks: Annotated[
        bool, typer.Option(help="without a recipe: --no-checks measures nothing, and the manifest says so")
    ] = True,
    only: Only = None,
    threads: Annotated[int, typer.Option(min=0, help="0: one per core")] = 0,
    force: Annotated[bool, typer.Option(help="make everything anew")] = False,
    work_dir: WorkDir = Path("build"),
    junit: Junit = None,
    as_json: AsJson = False,
) -> None:
    """Make the artefacts, check them in their engine, report, and publish when every gate has passed."""
    document = recipe_file.of_call(recipe_path, source, format=format, type=type, out=out, checks=checks)
    options = Options(work_dir=work_dir, threads=threads, only=tuple(only or ()), force=force)
    with shown(err) as progress:
        manifest = pipeline.convert(document, options, progress)
    screen.show_result(err, manifest, pipeline.build_folder(document, options))
    ci.tell(manifest, junit)
    if as_json:
        _print(manifest.model_dump(mode="json"))
    try:
        pipeline.judge(manifest, pipeline.build_folder(document, options))
    except QuantkitError as error:  # the manifest is the one JSON document here
        _say(str(error))
        raise typer.Exit(error.exit_code) from error


@app.command()
def plan(
    recipe_path: RecipeArgument = None,
    source: Source = None,
    format: Format = "gguf",
    type: Type = None,
    only: Only = None,
    work_dir: WorkDir = Path("build"),
    as_json: AsJson = False,
) -> None:
    """Say what a run would make and need, tensor by tensor, before any weight is read."""
    document = recipe_file.of_call(recipe_path, source, format=format, type=type, out=None, checks=True)
    options = Options(work_dir=work_dir, only=tuple(only or ()))
    made = pipeline.make_plan(document, describe(document.recipe.source), options)
    if as_json:
        _print(made.as_json())
    else:
        screen.show_plan(page, made)


@app.command()
def check(
    old: Annotated[Path, typer.Argument(help="a build or published folder, its manifest.json, or one of its artefacts")],
    new: Annotated[Path, typer.Argument(help="the same of what it is compared with")],
    as_json: AsJson = False,
) -> None:
    """Show which differences between two made artefacts are beyond noise."""
    found = comparing.compare(old, new)
    if as_json:
        _print(found.as_json())
    else:
        screen.show_comparison(page, found)


@app.command(name="doctor")
def examine(as_json: AsJson = False) -> None:
    """Check the installation: engines, versions, CPU, memory and disk, with a remedy for each failure."""
    findings = doctor.examine()
    if as_json:
        _print([finding.as_json() for finding in findings])
    else:
        screen.show_findings(page, findings)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(InputError.exit_code)


@app.command()
def schema(report: Annotated[bool, typer.Option("--report", help="that of report.json")] = False) -> None:
    """Print the JSON Schema of a recipe, or of a run's report.json."""
    _print(contents.schema() if report else recipes.schema())


@app.command()
def clean(
    work_dir: WorkDir = Path("build"),
    yes: Annotated[bool, typer.Option("--yes", help="remove the build folders; without it all is only shown")] = False,
    hub: Annotated[
        bool, typer.Option("--hub", help="with --yes: remove the Hub's cache too, which other programs share")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the build folders and the Hub's cache hold, and free it. Published artefacts stay."""
    builds, downloads = pipeline.leftovers(work_dir), cache.repositories()
    freed = [*(builds if yes else []), *(downloads if yes and hub else [])]
    if yes:
        pipeline.remove(builds)
    if yes and hub:
        cache.remove(downloads)
    if as_json:
        _print([{"path": str(path), "nbytes": size, "removed": (path, size) in freed} for path, size in [*builds, *downloads]])
    else:
        screen.show_leftovers(page, builds, downloads, freed)


def _print(document: Any) -> None:
    print(json.dumps(document, indent=2))


def main() -> None:
    """Entry point: every error of quantkit's tree ends in its own exit code, and in one JSON document when --json was given."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that temporary files and child processes go
    try:
        app()
    except QuantkitError as error:
        sys.exit(_fail(type(error).__name__, str(error), error.exit_code))
    except SystemExit as leave:
        if leave.code == INTERRUPTED:
            _fail("Interrupted", "interrupted; the next run continues from the last finished step", INTERRUPTED)
        usage = getattr(leave.__context__, "message", None)  # of an unknown option; typer has shown it on stderr
        if usage and "--json" in sys.argv:
            _print({"error": "UsageError", "message": usage, "exit_code": leave.code})
        raise


def _say(message: str) -> None:
    err.print(f"quantkit: {message}", style="red" if err.is_terminal else None, highlight=False, markup=False, soft_wrap=True)


def _fail(kind: str, message: str, code: int) -> int:
    _say(message)
    if "--json" in sys.argv:
        _print({"error": kind, "message": message, "exit_code": code})
    return code
