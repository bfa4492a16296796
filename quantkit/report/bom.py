"""The bill of materials of what was made: CycloneDX 1.6, an ML-BOM. A pure function of the manifest.

Source: the JSON schema bom-1.6 of ECMA-424; performance metrics carry the standard error as an interval of one error each way.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from quantkit.manifest import CheckRecord, Manifest, TargetRecord

_MEASURED = {
    "perplexity": ("ratio", "ratio_error", "perplexity ratio"),
    "divergence": ("mean_kld", "mean_kld_error", "mean Kullback-Leibler divergence, nats"),
    "embedding": ("cosine", "cosine_error", "mean cosine of embeddings"),
}


def bom(manifest: Manifest) -> dict[str, Any]:
    """A CycloneDX document: artefacts with digests and figures, what they were made of, and by what tools."""
    materials = [_source(manifest), *_texts(manifest)]
    artefacts = [_artefact(manifest, target) for target in manifest.targets]
    made_of = [material["bom-ref"] for material in materials]
    identity = "".join(sorted(file.sha256 for file in manifest.files)) + manifest.created
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, identity)}",
        "version": 1,
        "metadata": {
            "timestamp": manifest.created,
            "tools": {"components": list(_tools(manifest))},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "recipe",
                "name": manifest.recipe.name,
                "version": manifest.recipe.digest[:12],
                "licenses": _licences(manifest),
            },
        },
        "components": [*artefacts, *materials],
        "dependencies": [
            {"ref": "recipe", "dependsOn": [artefact["bom-ref"] for artefact in artefacts]},
            *({"ref": artefact["bom-ref"], "dependsOn": made_of} for artefact in artefacts),
        ],
    }


def _tools(manifest: Manifest) -> Iterator[dict[str, Any]]:
    yield {"type": "application", "name": "quantkit", "version": manifest.quantkit}
    for name, version in manifest.machine.versions.items():
        yield {"type": "library", "name": name, "version": version}


def _licences(manifest: Manifest) -> list[dict[str, Any]]:
    source = manifest.source
    named = source.licence_name or source.licence
    if named is None:
        return []
    return [{"license": {"name": named} | ({"url": source.licence_link} if source.licence_link else {})}]


def _source(manifest: Manifest) -> dict[str, Any]:
    source = manifest.source
    found: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "source",
        "name": source.name,
        "licenses": _licences(manifest),
        "modelCard": {"modelParameters": {"architectureFamily": source.architecture}},
        "properties": [{"name": "quantkit:uri", "value": source.uri}],
        "components": [
            {"type": "file", "name": name, "hashes": _hashes(digest)} for name, digest in sorted(source.digests.items())
        ],
    }
    if source.repo:
        found["purl"] = f"pkg:huggingface/{source.repo}" + (f"@{source.commit}" if source.commit else "")
    if source.commit:
        found["version"] = source.commit
    return found


def _texts(manifest: Manifest) -> Iterator[dict[str, Any]]:
    for role, texts in (("calibration", manifest.calibration), ("evaluation", manifest.text)):
        for name, digest in texts.items():
            yield {"type": "data", "bom-ref": f"{role}:{name}", "name": name, "description": f"{role} text",
                   "hashes": _hashes(digest)}  # fmt: skip


def _artefact(manifest: Manifest, target: TargetRecord) -> dict[str, Any]:
    metrics = [metric for check in target.checks if (metric := _metric(check)) is not None]
    return {
        "type": "machine-learning-model",
        "bom-ref": target.name,
        "name": target.file,
        "version": manifest.recipe.digest[:12],
        "hashes": _hashes(target.sha256),
        "licenses": _licences(manifest),
        "modelCard": {
            "modelParameters": {"architectureFamily": manifest.source.architecture, "modelArchitecture": target.type},
            "quantitativeAnalysis": {"performanceMetrics": metrics},
        },
        "properties": [
            {"name": "quantkit:verdict", "value": target.verdict},
            {"name": "quantkit:bits-per-weight", "value": f"{target.bits_per_weight:.3f}"},
            {"name": "quantkit:cpu-class", "value": manifest.machine.cpu_class},
        ],
        "components": [
            {"type": "file", "name": file.name, "hashes": _hashes(file.sha256)} for file in target.files[1:]
        ],
    }  # fmt: skip


def _metric(check: CheckRecord) -> dict[str, Any] | None:
    if check.check not in _MEASURED:
        return None
    key, error_key, name = _MEASURED[check.check]
    value, error = check.values.get(key), check.values.get(error_key)
    if not isinstance(value, float | int):
        return None
    found: dict[str, Any] = {"type": name, "value": f"{value:.6g}", "slice": check.engine}
    if isinstance(error, float | int):
        found["confidenceInterval"] = {"lowerBound": f"{value - error:.6g}", "upperBound": f"{value + error:.6g}"}
    return found


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]
