"""The recipe's calibration as token sequences: a text, several with shares, or what the model itself says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantkit import footprint, quality, workspace
from quantkit.calibration.corpus import Sequences
from quantkit.engines import llama_cpp
from quantkit.errors import ResourceError, UnsupportedError
from quantkit.formats.gguf import layout, writer
from quantkit.job import Job
from quantkit.recipe import SELF
from quantkit.report import machine
from quantkit.source import text
from quantkit.targets import GgufTarget
from quantkit.version import __version__

SAMPLING_THREADS = 2  # llama.cpp's sums follow their number, and bytes must not


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Sequences in the order of the recipe's texts. name: of the texts, with shares; digests: their sha256 by name."""

    sequences: Sequences
    name: str
    digests: Mapping[str, str]


def calibrate(job: Job) -> Calibrated:
    """Raises SourceError, UnresolvedError for a text, ResourceError where the model cannot be run to speak for itself."""
    calibration = job.recipe.calibration
    assert calibration is not None
    found, names, digests = [], [], {}
    for uri, count in calibration.counts():
        if uri == SELF:
            tokens = _spoken(job, count)
            found.append(Sequences(tokens))
            name, digest = SELF, workspace.key(tokens=tokens.tobytes().hex())
        else:
            given = text.fetch(uri, job.work)
            found.append(quality.cut(job.snapshot, given, chunks=count, length=calibration.length, seed=calibration.seed))
            name, digest = given.name, given.sha256
        names.append(name if len(calibration.counts()) == 1 else f"{count} x {name}")
        digests[name] = digest
    decoders = [each.decoder_tokens for each in found if each.decoder_tokens is not None]
    sequences = Sequences(np.concatenate([each.tokens for each in found]), np.concatenate(decoders) if decoders else None)
    return Calibrated(sequences, ", ".join(names), digests)


def held_out(job: Job, chunks: int) -> Sequences:
    """Other sequences of the calibration's first text, as far as it has others; of what the model says, some of the same."""
    calibration = job.recipe.calibration
    assert calibration is not None
    uri = next((uri for uri, _ in calibration.counts() if uri != SELF), SELF)
    if uri == SELF:
        return Sequences(_spoken(job, calibration.sequences)[:chunks])
    given, seed = text.fetch(uri, job.work), calibration.seed + 1
    return quality.cut(job.snapshot, given, chunks=chunks, length=calibration.length, seed=seed)


def _spoken(job: Job, count: int) -> NDArray[np.int32]:
    """Sequences sampled from the model, from a Q8_0 file of it that is made for it; kept for a later run."""
    calibration, snapshot = job.recipe.calibration, job.snapshot
    assert calibration is not None
    assert snapshot.tokenizer is not None
    if quality.kind(snapshot) != "decoder":
        raise UnsupportedError(f"calibration: {SELF}: only decoders speak for themselves; name a text")
    target = GgufTarget(format="gguf", type="Q8_0")
    plan = layout.plan(target, "", snapshot, "self")
    plan = replace(plan, files=(replace(plan.files[0], name=f"self-Q8_0.gguf{workspace.PARTIAL}"),))
    nbytes = sum(row.nbytes for row in plan.rows)
    need = footprint.memory(nbytes, plan.rows, snapshot.config, [calibration.length])[0].total
    if need > 0.9 * machine.memory_bytes():
        raise ResourceError(
            f"calibration: {SELF}: the model as Q8_0 needs {need / 1e9:.1f} GB and this machine has "
            f"{machine.memory_bytes() / 1e9:.1f} GB; name a text"
        )
    path = job.work / "self.npy"
    made_from = workspace.key(
        source=layout.source_digest(snapshot), config=snapshot.config, count=count, length=calibration.length,
        seed=calibration.seed, quantkit=__version__,
    )  # fmt: skip
    if workspace.recall(path, made_from) is None:
        artefact = writer.write(plan, snapshot, job.work, importance={}, threads=job.threads, progress=job.progress)
        try:
            tokens = llama_cpp.sample(
                artefact.path, count=count, length=calibration.length, seed=calibration.seed, threads=SAMPLING_THREADS,
                progress=job.progress,
            )  # fmt: skip
        finally:
            artefact.path.unlink(missing_ok=True)
        with workspace.replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, tokens)
        workspace.remember(path, made_from)
    found: NDArray[np.int32] = np.load(path)
    return found
