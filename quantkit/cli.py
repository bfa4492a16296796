"""The command line: parse, one call, print. Machine output is one JSON document on stdout, everything else goes to stderr."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from quantkit import ci, doctor, recipe_file, recipe_lock, runs, screen, workspace
from quantkit import recipe as recipes
from quantkit.errors import InputError, QuantkitError
from quantkit.job import Options
from quantkit.progress import shown
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
    locked: Annotated[bool, typer.Option("--locked", help="refuse a recipe without a lock that holds")] = False,
    sign_key: Annotated[
        Path | None, typer.Option(help="sign what is published with this private key (PEM, elliptic curve)")
    ] = None,
    work_dir: WorkDir = Path("build"),
    junit: Junit = None,
    as_json: AsJson = False,
) -> None:
    """Make the artefacts, check them in their engine, report, and publish when every gate has passed."""
    document = recipe_file.of_call(recipe_path, source, format=format, type=type, out=out, checks=checks)
    if recipe_path is not None and source is None:
        document = recipe_lock.apply(document, recipe_path, required=locked)
    elif locked:
        raise InputError("--locked is for a recipe with a source of its own: quantkit run RECIPE.yaml --locked")
    options = Options(work_dir=work_dir, threads=threads, only=tuple(only or ()), force=force, sign_key=sign_key)
    with shown(err) as progress:
        manifest = runs.convert(document, options, progress)
    screen.show_result(err, manifest, options.folder(document.name))
    ci.tell(manifest, junit)
    if as_json:
        _print(manifest.model_dump(mode="json"))
    try:
        runs.judge(manifest, options.folder(document.name))
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
    if recipe_path is not None and source is None:
        document = recipe_lock.apply(document, recipe_path)
    options = Options(work_dir=work_dir, only=tuple(only or ()))
    from quantkit import pipeline
    from quantkit.source import describe

    made = pipeline.make_plan(document, describe(document.recipe.source), options)
    if as_json:
        _print(made.as_json())
    else:
        screen.show_plan(page, made)


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="org/name or hf://org/name@rev, a folder, a .gguf")],
    memory: Annotated[str | None, typer.Option(help="of the machine that is asked about, e.g. 12GB; else this one's")] = None,
    named: Annotated[str | None, typer.Option("--machine", help="a machine by name: colab, actions, raspberrypi5")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a checkpoint is, its size in every format and where each would run, before anything is downloaded."""
    from quantkit import inspecting

    held = inspecting.memory_of(memory) if memory else None
    found = inspecting.inspect(source, memory=held, named=named)
    if as_json:
        _print(found.as_json())
    else:
        screen.show_inspection(page, found)


@app.command()
def lock(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="the recipe to lock")], as_json: AsJson = False
) -> None:
    """Resolve the recipe's branches, datasets and files to commits and digests, in a .lock file beside it."""
    from quantkit import locking

    with shown(err) as progress:
        found = locking.lock(recipe_file.read(recipe_path), progress)
    path = recipe_lock.beside(recipe_path)
    with workspace.replacing(path) as temporary:
        temporary.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if as_json:
        _print(found.model_dump(mode="json"))
    else:
        screen.show_lock(page, found, path)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="a published folder")],
    key: Annotated[Path | None, typer.Option(help="the public key that it must be signed by")] = None,
    source: Annotated[str | None, typer.Option(help="where the source lies now, if not where the manifest says")] = None,
    sample: Annotated[int, typer.Option(min=0, help="tensors of every GGUF to derive from the source again")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="chooses them")] = 0,
    rerun: Annotated[bool, typer.Option("--rerun", help="run the recipe again for codes that follow from a whole run")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a published folder's digests and signature, and derive a sample of its tensors from the source, bit for bit."""
    from quantkit import provenance

    with shown(err) as progress:
        found = provenance.verify(folder, provenance.Asked(key, source, sample, seed, rerun), Options().workers, progress)
    if as_json:
        _print([asdict(result) for result in found])
    else:
        screen.show_checks(page, found)
    provenance.judge(folder, found)


@app.command()
def publish(
    build: Annotated[Path, typer.Argument(metavar="BUILD_FOLDER", help="build/<recipe> of a run whose gates passed")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go where, without the network")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish a finished build to its recipe's destinations, or finish what a run could not."""
    from quantkit import publishing

    if dry_run:
        outline = publishing.outline(build)
        if as_json:
            _print(asdict(outline))
        else:
            screen.show_outline(page, outline)
        return
    with shown(err) as progress:
        addresses = publishing.finish(build, progress)
    if as_json:
        _print([{"destination": place, "address": address} for place, address in addresses.items()])
    else:
        screen.show_addresses(page, addresses)


@app.command()
def check(
    old: Annotated[Path, typer.Argument(help="a build or published folder, its manifest.json, or one of its artefacts")],
    new: Annotated[Path, typer.Argument(help="the same of what it is compared with")],
    as_json: AsJson = False,
) -> None:
    """Show which differences between two made artefacts are beyond noise."""
    from quantkit import comparing

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
    from quantkit.report import contents

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
    from quantkit.source import cache

    builds, downloads = workspace.leftovers(work_dir), cache.repositories()
    freed = [*(builds if yes else []), *(downloads if yes and hub else [])]
    if yes:
        workspace.remove(builds)
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
