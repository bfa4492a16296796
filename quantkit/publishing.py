"""A finished build goes to every place that its recipe names, when every gate has passed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit import licensing, recipe_file, runs, sealing, workspace
from quantkit.destinations import Destination, FolderPublish, HubPublish, OciPublish
from quantkit.errors import CheckFailed, InputError
from quantkit.job import Job
from quantkit.manifest import Manifest
from quantkit.publish import folder, hub, oci, signature
from quantkit.recipe import Recipe
from quantkit.targets import Target, mark
from quantkit.values import Progress


@dataclass(frozen=True, slots=True)
class Build:
    """work: the folder of a finished build, its gates passed. texts: what sealing carried, name -> text. targets: those that
    were made. sign_key: a private key that signs what is published."""

    work: Path
    manifest: Manifest
    texts: Mapping[str, str]
    targets: tuple[Target, ...]
    destinations: tuple[Destination, ...]
    sign_key: Path | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A file that would go to a destination, and how: by link, as LFS or as a regular file of git."""

    destination: str
    file: str
    nbytes: int
    how: str


@dataclass(frozen=True, slots=True)
class Outline:
    """What publishing would do, and what keeps it from that."""

    pieces: tuple[Piece, ...]
    obstacles: tuple[str, ...]


def publish(job: Job, manifest: Manifest, sign_key: Path | None = None) -> Manifest:
    """Every file of the build that a user wants, to each of the recipe's destinations, signed where there is a key.

    Returns the manifest that says so; where publishing fails, the build keeps the one that does not.
    """
    texts, targets = sealing.carried(manifest, job.snapshot), _made(manifest, job.recipe)
    build = Build(job.work, manifest, texts, targets, job.recipe.publish, sign_key)
    said, addresses = _publish(build, job.progress)
    for address in addresses.values():
        job.progress(f"published {address}", 1, 1)
    return said


def finish(work: Path, progress: Progress) -> dict[str, str]:
    """Publish a build folder that a run left: place -> address of what is there now.

    What is there already is not brought again, so a run that got to half of its destinations is finished so. Raises what
    `reopen` does, InputError for a destination that is out of reach as it stands, ResourceError where a run is at work.
    """
    _manifest(work)
    (work / workspace.LOCK).touch()  # a build that was carried here may have come without its hidden files
    with workspace.locked(work):
        build = reopen(work)
        if obstacles := list(_obstacles(build)):
            raise InputError("\n".join(obstacles))
        return _publish(build, progress)[1]


def outline(work: Path) -> Outline:
    """What `finish` would do, without the network. Raises what `reopen` does."""
    build = reopen(work)
    with tempfile.TemporaryDirectory() as place:
        documents = sealing.write(Path(place), _said(build), build.texts)
        files = {file.name: work / file.name for file in build.manifest.files} | {name: Path(place, name) for name in documents}
        pieces = [piece for each in _ordered(build.destinations) for piece in _pieces(files, each)]
    return Outline(tuple(pieces), tuple(_obstacles(build)))


def reopen(work: Path) -> Build:
    """A finished build, every file held against its manifest.

    Raises InputError for a folder that is none, for a file that is missing or not what was built, and for a recipe that
    names no destination; CheckFailed or UnresolvedError for a build whose gates did not pass.
    """
    manifest = _manifest(work)
    recipe = recipe_file.parse(manifest.recipe.text, manifest.recipe.name, f"the recipe in {work / hub.MANIFEST}").recipe
    if not recipe.publish:
        raise InputError(f"{work}: its recipe names no destination; add `publish:` to the recipe, and run it again")
    runs.judge(manifest, work)
    for file in manifest.files:
        _verify(work, file.name, file.sha256, file.nbytes)
    texts = dict(_texts(work, manifest))
    if left := [name for name in manifest.source.licence_files if name not in texts]:
        raise CheckFailed(f"licence: {', '.join(left)} of the source's licence is not in {work}; run the recipe again")
    return Build(work, manifest, texts, _made(manifest, recipe), recipe.publish)


def _obstacles(build: Build) -> Iterator[str]:
    for destination in build.destinations:
        if (found := obstacle(destination, build.targets)) is not None:
            yield found


def place(destination: Destination) -> str:
    """Where it is, as the manifest and the screen name it."""
    match destination:
        case FolderPublish():
            return destination.folder
        case HubPublish():
            return f"hf://{destination.hub}@{destination.branch}" + (" (pull request)" if destination.pull_request else "")
        case OciPublish():
            return f"oci://{destination.oci}"


def obstacle(destination: Destination, targets: Sequence[Target]) -> str | None:
    """What would keep a build of `targets` from it, as far as can be seen without writing or the network; None if nothing."""
    match destination:
        case FolderPublish():
            return folder.obstacle(Path(destination.folder))
        case HubPublish():
            return hub.obstacle(destination)
        case OciPublish():
            ggufs = [target for target in targets if target.format == "gguf"]
            return oci.obstacle(destination, [f"{target.label} {mark(target, ggufs)}".rstrip() for target in ggufs])


def send(build: Build, files: Mapping[str, Path], destination: Destination, manifest: Manifest, progress: Progress) -> str:
    """Put files (name -> path) of a build there; the address of what is there now."""
    match destination:
        case FolderPublish():
            version = f"{manifest.created.replace(':', '')}-{manifest.recipe.digest[:8]}"
            return str(folder.publish(files, Path(destination.folder), version))
        case HubPublish():
            return hub.publish(files, destination, message=_message(manifest), progress=progress)
        case OciPublish():
            licences = tuple(name for name in build.texts if name != sealing.MODELFILE)
            return oci.publish(files, licences, manifest, destination, progress)


def _publish(build: Build, progress: Progress) -> tuple[Manifest, dict[str, str]]:
    """The manifest as published, and place -> address; folders first, as they cost nothing and need no network."""
    said = _said(build)
    try:
        names = [*(file.name for file in said.files), *sealing.write(build.work, said, build.texts)]
        licensing.hold(build.work, said)
        files = {name: build.work / name for name in names}
        if left := [name for name in said.source.licence_files if name not in files]:
            raise CheckFailed(f"licence: {', '.join(left)} would not be published; run the recipe again with --force")
        signed = build.work / signature.NAME
        if build.sign_key is not None:
            signature.sign(files, build.sign_key, signed)
        if signed.is_file():
            files[signature.NAME] = signed
        return said, {place(each): send(build, files, each, said, progress) for each in _ordered(build.destinations)}
    except BaseException:
        sealing.write(build.work, build.manifest, build.texts)
        raise


def _made(manifest: Manifest, recipe: Recipe) -> tuple[Target, ...]:
    names = {target.name for target in manifest.targets}
    return tuple(target for target in recipe.targets if target.name in names)


def _said(build: Build) -> Manifest:
    return build.manifest.model_copy(update={"published": [place(each) for each in build.destinations]})


def _ordered(destinations: tuple[Destination, ...]) -> list[Destination]:
    return sorted(destinations, key=lambda each: not isinstance(each, FolderPublish))


def _pieces(files: Mapping[str, Path], destination: Destination) -> Iterator[Piece]:
    match destination:
        case FolderPublish():
            for name, path in sorted(files.items()):
                yield Piece(place(destination), name, path.stat().st_size, "link")
        case HubPublish():
            for name, nbytes, how in hub.plan(files, destination):
                yield Piece(place(destination), name, nbytes, how)
        case OciPublish():
            for name in sorted(name for name in files if name.endswith(".gguf")):
                yield Piece(place(destination), name, files[name].stat().st_size, "layer")


def _message(manifest: Manifest) -> str:
    """Of a commit: the recipe, what it made and of what; then where that came from."""
    source = manifest.source
    title = f"{manifest.recipe.name}: {source.repo or source.name} quantised by quantkit {manifest.quantkit}"
    commit = f" at commit {source.commit}" if source.commit else ""
    return f"{title}\nSource: {source.uri if source.kind == 'hub' else source.repo or source.name}{commit}"


def _manifest(work: Path) -> Manifest:
    """The manifest of a build folder. Raises InputError for a folder without one."""
    path = work / hub.MANIFEST
    try:
        return Manifest.read(path)
    except OSError as error:
        raise InputError(f"{work} is no finished build: {path} cannot be read; give build/<recipe> of a run") from error
    except ValueError as error:
        raise InputError(f"{path} is no manifest of this quantkit's; run the recipe again") from error


def _texts(work: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What was carried: what SHA256SUMS lists beside the artefacts and the documents made of the manifest."""
    sums = folder.listed(work / folder.SUMS)
    made = {file.name for file in manifest.files} | sealing.documents(manifest, {}).keys()
    for name in sums.keys() - made:
        _verify(work, name, sums[name])
        yield name, (work / name).read_bytes().decode("utf-8")


def _verify(work: Path, name: str, sha256: str, nbytes: int | None = None) -> None:
    """Raise InputError unless the build folder's file is what was recorded."""
    path = work / name
    if not path.is_file():
        raise InputError(f"{path} is missing, the build lists it; run the recipe again")
    size = path.stat().st_size
    if nbytes is not None and size != nbytes:
        raise InputError(f"{path} has {size} bytes, {nbytes} were built; run the recipe again")
    if (found := workspace.digest(path)) != sha256:
        raise InputError(f"{path} changed since it was built: sha256 {found}, {sha256} was built; run the recipe again")
