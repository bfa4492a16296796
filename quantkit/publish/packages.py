"""One GGUF as an OCI artefact: its layers, its config and its manifest, in the layout of either specification.

docker     docker/model-spec 0.1 (spec.md, config.md), and the fields that docker/model-runner reads (types/config.go)
modelpack  CNCF ModelPack, modelpack/model-spec 1.0 (docs/spec.md, config.md, annotations.md; specs-go/v1)

Where the two sources of the first differ, the config has the fields of both: `files` beside `rootfs`, `createdAt` beside
`created`. Everything follows from the build, so that the same build gives the same digests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.codecs import gguf_kv
from quantkit.errors import InputError
from quantkit.manifest import FileRecord, Manifest, SourceRecord, TargetRecord
from quantkit.publish.registry import Blob

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_CONFIG = "application/vnd.docker.ai.model.config.v0.1+json"
DOCKER_GGUF = "application/vnd.docker.ai.gguf.v3"
DOCKER_LICENCE = "application/vnd.docker.ai.license"
PACK_ARTEFACT = "application/vnd.cncf.model.manifest.v1+json"
PACK_CONFIG = "application/vnd.cncf.model.config.v1+json"
PACK_WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
PACK_DOCUMENT = "application/vnd.cncf.model.doc.v1.raw"

DOCUMENTS = ("README.md", "manifest.json", "SHA256SUMS")
_LONGEST_ARRAY = 10  # of the GGUF's metadata in the config, as model-runner has it: vocabularies stay out
_PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_SPDX = {
    name.lower(): name
    for name in (
        "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "GPL-2.0", "GPL-3.0", "LGPL-3.0", "AGPL-3.0", "MPL-2.0", "ISC",
        "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0", "Unlicense", "Zlib",
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Package:
    """What is pushed under one tag: `blobs`, the config among them, then `manifest`."""

    blobs: tuple[Blob, ...]
    manifest: bytes

    @property
    def digest(self) -> str:
        return _digest(self.manifest)


@dataclass(frozen=True, slots=True)
class _Layer:
    blob: Blob
    media_type: str


def docker(files: Mapping[str, Path], licences: Sequence[str], manifest: Manifest, target: TargetRecord) -> Package:
    """For Docker Model Runner: the GGUF (its parts, in their order) and the licence's texts; what else is known is annotated.

    Raises InputError for a file that is not the one that was built.
    """
    layers = [_Layer(_built(files, file), DOCKER_GGUF) for file in target.files]
    layers += [_Layer(_document(files, name), DOCKER_LICENCE) for name in licences]
    config = {
        "config": {
            "format": "gguf",
            "format_version": "3",
            "quantization": target.type,
            "parameters": f"{manifest.source.parameters / 1e6:.2f} M",
            "architecture": manifest.source.architecture,
            "size": str(target.nbytes),
            "gguf": _metadata(files[target.file]),
        },
        "descriptor": {"created": manifest.created, "createdAt": manifest.created},
        "rootfs": {"type": "rootfs", "diff_ids": [layer.blob.digest for layer in layers]},
        "files": [{"diffID": layer.blob.digest, "type": layer.media_type} for layer in layers],
    }
    return _package(DOCKER_CONFIG, config, layers, _annotations(manifest, target))


def modelpack(files: Mapping[str, Path], licences: Sequence[str], manifest: Manifest, target: TargetRecord) -> Package:
    """For tools of ModelPack's: the GGUF, and the model card, manifest, sums and licences as documents, each file a layer.

    Raises InputError for a file that is not the one that was built.
    """
    source = manifest.source
    layers = [_Layer(_built(files, file), PACK_WEIGHT) for file in target.files]
    layers += [_Layer(_document(files, name), PACK_DOCUMENT) for name in (*DOCUMENTS, *licences) if name in files]
    precision = _PRECISIONS.get(target.type)
    config = {
        "descriptor": _present(
            createdAt=manifest.created,
            family=source.architecture,
            name=source.name,
            sourceURL=source.uri,
            revision=source.commit,
            licenses=[named] if (named := spdx(source)) else None,
            title=f"{source.name} {target.title}",
        ),
        "config": _present(
            architecture="transformer",
            format="gguf",
            paramSize=_scaled(source.parameters),
            precision=precision,
            quantization=None if precision else target.type,
        ),
        "modelfs": {"type": "layers", "diffIds": [layer.blob.digest for layer in layers]},
    }
    return _package(PACK_CONFIG, config, layers, _annotations(manifest, target), PACK_ARTEFACT)


def spdx(source: SourceRecord) -> str | None:
    """The licence as an SPDX expression: of the list where the source's name is on it, else a reference; None if unknown."""
    named = source.licence_name if source.licence == "other" else source.licence
    if not named:
        return None
    return _SPDX.get(named.lower()) or "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", named)


def _package(
    kind: str, config: Mapping[str, Any], layers: Sequence[_Layer], annotations: Mapping[str, str], artefact: str | None = None
) -> Package:
    content = _json(config)
    blob = Blob("the config", _digest(content), len(content), content)
    manifest = _present(
        schemaVersion=2,
        mediaType=MANIFEST,
        artifactType=artefact,
        config={"mediaType": kind, "digest": blob.digest, "size": blob.nbytes},
        layers=[_descriptor(layer) for layer in layers],
        annotations=annotations,
    )
    return Package((*(layer.blob for layer in layers), blob), _json(manifest))


def _descriptor(layer: _Layer) -> dict[str, Any]:
    """With the file's name for either kind of tool, and its attributes, which are constants for the sake of the digest."""
    name = layer.blob.name.rpartition("/")[2]
    attributes = {"name": name, "mode": 0o644, "uid": 0, "gid": 0, "size": layer.blob.nbytes}
    return {
        "mediaType": layer.media_type,
        "digest": layer.blob.digest,
        "size": layer.blob.nbytes,
        "annotations": {
            "org.opencontainers.image.title": name,
            "org.cncf.model.filepath": layer.blob.name,
            "org.cncf.model.file.metadata+json": _json(
                attributes | {"mtime": "1970-01-01T00:00:00Z", "typeflag": ord("0")}
            ).decode(),
            "org.cncf.model.file.mediatype.untested": "false",
        },
    }


def _annotations(manifest: Manifest, target: TargetRecord) -> dict[str, str]:
    """The keys that the OCI image specification predefines (annotations.md), as far as they are known."""
    source = manifest.source
    said = _present(
        created=manifest.created,
        title=f"{source.name} {target.title}",
        source=source.uri,
        revision=source.commit,
        licenses=spdx(source),
        description=f"{source.name} as GGUF {target.title}, by quantkit {manifest.quantkit}, recipe {manifest.recipe.digest}",
    )
    return {f"org.opencontainers.image.{key}": value for key, value in said.items()}


def _built(files: Mapping[str, Path], record: FileRecord) -> Blob:
    """A file of the manifest, whose digest is the one that was computed when it was built; the registry computes it again."""
    found = files[record.name].stat().st_size
    if found != record.nbytes:
        raise InputError(
            f"{record.name} changed since it was built: {found} bytes, manifest.json says {record.nbytes}. Build it again"
        )
    return Blob(record.name, f"sha256:{record.sha256}", record.nbytes, files[record.name])


def _document(files: Mapping[str, Path], name: str) -> Blob:
    content = files[name].read_bytes()
    return Blob(name, _digest(content), len(content), content)


def _metadata(path: Path) -> dict[str, str]:
    """The GGUF's key-value pairs as model-runner writes them: texts, long arrays left out."""
    pairs = gguf_kv.read(path).pairs
    short = (pair for pair in pairs if not isinstance(pair.value, list) or len(pair.value) <= _LONGEST_ARRAY)
    return {pair.key: _text(pair.value) for pair in short}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, float) else str(value)


def _scaled(parameters: int) -> str:
    """134515008 -> 134.5m: a count with one decimal and the letter of its scale."""
    for letter, scale in (("t", 1e12), ("b", 1e9), ("m", 1e6)):
        if parameters >= scale:
            return f"{parameters / scale:.1f}{letter}"
    return f"{parameters / 1e3:.1f}k"


def _present(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
