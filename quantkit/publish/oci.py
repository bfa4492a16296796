"""Publish into an OCI registry: every GGUF of a build under a tag of its own.

    registry/name:tag            the first GGUF that passed
    registry/name:tag-q4_k_m     each of them, where there are several

All blobs of all tags are there before the first tag is put, and the plain tag comes last: who pulls one gets all of it.
Publishing the same build again sends no blob and gives the same digests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.destinations import OciPublish
from quantkit.errors import InputError
from quantkit.manifest import Manifest
from quantkit.publish import credentials, packages, registry
from quantkit.values import Progress

_HOST = r"(?P<host>localhost(?::\d+)?|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*:\d+|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(rf"{_HOST}/(?P<name>{_PART}(?:/{_PART})*):(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]*)")
_LONGEST_NAME = 255  # host and name together: the specification's advice, which registries enforce
_LONGEST_TAG = 128


@dataclass(frozen=True, slots=True)
class Reference:
    """registry[:port]/name:tag, taken apart."""

    host: str
    name: str
    tag: str


def reference(text: str) -> Reference:
    """A reference's parts. Raises InputError for what the distribution specification (Pulling manifests) does not allow."""
    if "@" in text:
        raise InputError(f"oci: {text}: a digest names what is there already; give a tag to push to: registry/name:tag")
    found = _REFERENCE.fullmatch(text)
    if not found:
        raise InputError(
            f"oci: {text} is no reference that can be pushed to: registry[:port]/name:tag, the registry with a dot or a port, "
            "the name in lower case, the tag of letters, digits, '.', '_' and '-'"
        )
    host, name, tag = found["host"], found["name"], found["tag"]
    if len(host) + 1 + len(name) > _LONGEST_NAME:
        raise InputError(
            f"oci: {text}: registry and name have {len(host) + 1 + len(name)} characters, of {_LONGEST_NAME}; shorten them"
        )
    if len(tag) > _LONGEST_TAG:
        raise InputError(f"oci: {text}: the tag has {len(tag)} characters, of {_LONGEST_TAG}; shorten it")
    return Reference(host, name, tag)


def obstacle(destination: OciPublish, titles: Sequence[str]) -> str | None:
    """What would keep `publish` from this destination, without the network; `titles`: those of the recipe's GGUF targets."""
    try:
        to = reference(destination.oci)
    except InputError as error:
        return str(error)
    if not titles:
        return f"oci: {destination.oci}: the recipe makes no GGUF to push: add a target {{format: gguf, type: Q4_K_M}}"
    longest = max((tagged(to.tag, title, len(titles)) for title in titles), key=len)
    if len(longest) > _LONGEST_TAG:
        return f"oci: {destination.oci}: the tag {longest} has {len(longest)} characters, of {_LONGEST_TAG}; shorten it"
    return None


def publish(
    files: Mapping[str, Path],
    licences: Sequence[str],
    manifest: Manifest,
    destination: OciPublish,
    progress: Progress,
    pauses: tuple[float, ...] = registry.PAUSES,
    chunk: int = registry.CHUNK,
) -> str:
    """Push every GGUF of the manifest; returns registry/name@sha256:... of the plain tag.

    `files`: name -> path, the documents among them; `licences`: the names of those that are the licence's. Raises
    InputError where the registry refuses us, or a file is not as it was built, UnresolvedError where it does not answer.
    """
    to = reference(destination.oci)
    ggufs = [target for target in manifest.targets if target.format == "gguf"]
    if not ggufs:
        raise InputError(f"oci: {destination.oci}: {manifest.recipe.name} made no GGUF to push")
    make = packages.docker if destination.layout == "docker" else packages.modelpack
    made = {target.name: make(files, licences, manifest, target) for target in ggufs}
    scheme = "http" if destination.plain_http else "https"
    known = credentials.basic(to.host, os.environ, Path.home())
    there = registry.Registry(f"{scheme}://{to.host}", to.name, known, pauses, chunk)
    for blob in {blob.digest: blob for package in made.values() for blob in package.blobs}.values():
        registry.push_blob(there, blob, progress)
    first = next((target for target in ggufs if target.verdict == "pass"), ggufs[0])
    tags = {tagged(to.tag, target.title, len(ggufs)): target for target in ggufs} | {to.tag: first}
    for tag, target in tags.items():
        package = made[target.name]
        registry.push_manifest(there, tag, package.manifest, packages.MANIFEST, package.digest)
    return f"{to.host}/{to.name}@{made[first.name].digest}"


def tagged(tag: str, title: str, several: int) -> str:
    """The tag of one GGUF among `several`."""
    return f"{tag}-{title.lower().replace(' ', '-')}" if several > 1 else tag
