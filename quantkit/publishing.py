"""A finished build goes to every place that its recipe names, when every gate has passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from quantkit import sealing
from quantkit.destinations import Destination, FolderPublish, HubPublish, OciPublish
from quantkit.job import Job
from quantkit.manifest import Manifest
from quantkit.publish import folder, oci
from quantkit.targets import Target


def publish(job: Job, manifest: Manifest) -> Manifest:
    """Every file of the build that a user wants, to each of the recipe's destinations.

    Returns the manifest that says so; where publishing fails, the build keeps the one that does not.
    """
    said = manifest.model_copy(update={"published": [place(each) for each in job.recipe.publish]})
    version = f"{manifest.created.replace(':', '')}-{manifest.recipe.digest[:8]}"
    try:
        names = [*(file.name for file in said.files), *sealing.write(job, said)]
        files = {name: job.work / name for name in names}
        for destination in job.recipe.publish:
            if isinstance(destination, OciPublish):
                pushed = oci.publish(files, tuple(job.snapshot.licence.files), said, destination, job.progress)
                job.progress(f"pushed {pushed}", 1, 1)
            else:
                send(files, destination, version)
    except BaseException:
        sealing.write(job, manifest)
        raise
    return said


def place(destination: Destination) -> str:
    """Where it is, as the manifest and the screen name it."""
    match destination:
        case FolderPublish():
            return destination.folder
        case HubPublish():
            return f"hf://{destination.hub}@{destination.branch}"
        case OciPublish():
            return f"oci://{destination.oci}"


def obstacle(destination: Destination, targets: Sequence[Target]) -> str | None:
    """What would keep a build of `targets` from it, as far as can be seen without writing or the network; None if nothing."""
    if isinstance(destination, FolderPublish):
        return folder.obstacle(Path(destination.folder))
    if isinstance(destination, OciPublish):
        return oci.obstacle(destination, [target.label for target in targets if target.format == "gguf"])
    return f"{place(destination)}: publishing there is not possible yet; use a folder"


def send(files: Mapping[str, Path], destination: Destination, version: str) -> None:
    """Put files (name -> path) there."""
    if isinstance(destination, FolderPublish):
        folder.publish(files, Path(destination.folder), version)
