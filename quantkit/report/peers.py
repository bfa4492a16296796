"""What others make of the same types: what they published of another model, for orientation, and their files that this run made
and measured; never for a gate."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.manifest import Manifest, PeerRecord, TargetRecord
from quantkit.report import figures
from quantkit.report.figures import Figures

SOURCE = "llama.cpp, tools/perplexity/README.md: Llama 3 8B on wikitext-2, against its F16 logits, without importance"
SHORT = "llama.cpp's own figures of Llama 3 8B"
_PARAMETERS = 8_030_261_248
_GiB = 1 << 30


@dataclass(frozen=True, slots=True)
class Published:
    """A type's size and mean KL divergence, nats, as its makers measured them on another model and text."""

    type: str
    nbytes: float
    kld: float

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / _PARAMETERS

    def size(self, parameters: int) -> float:
        """Bytes that a model of so many parameters would take at the same bits per weight."""
        return self.bits_per_weight * parameters / 8


LLAMA_CPP = (
    Published("Q8_0", 7.96 * _GiB, 0.001355),
    Published("Q6_K", 6.14 * _GiB, 0.005452),
    Published("Q5_K_M", 5.33 * _GiB, 0.010762),
    Published("Q4_K_M", 4.58 * _GiB, 0.031273),
    Published("Q4_0", 4.34 * _GiB, 0.071940),
    Published("Q3_K_M", 3.74 * _GiB, 0.101913),
    Published("Q2_K", 2.96 * _GiB, 0.445132),
)
"""The smallest last. Another model loses more or less at the same bits: Llama 2 7B two fifths of this as Q4_K_M."""


def curve(record: TargetRecord | PeerRecord) -> str:
    """The curve of divergence by size that a GGUF file lies on: its maker's, or how its codes were chosen; "" for no curve."""
    if isinstance(record, PeerRecord):
        name = f"{record.maker}, measured here"
    else:
        name = f"codes: {record.codes}" if record.format == "gguf" else ""
    return f"{name}, static" if name and record.mark.endswith("static") else name


def kld_ratio(target: TargetRecord, peer: PeerRecord) -> float | None:
    """The artefact's mean KL divergence over that of a peer's file of the same type."""
    ours, theirs = figures.figures(target).kld, figures.figures(peer).kld
    return ours / theirs if ours is not None and theirs else None


@dataclass(frozen=True, slots=True)
class Beside:
    """A peer's file, its figures, and the artefacts of its type, each with its KLD ratio."""

    peer: PeerRecord
    figures: Figures
    ratios: tuple[tuple[TargetRecord, float | None], ...]


def beside(manifest: Manifest) -> list[Beside]:
    """Every peer's file beside what it was measured for."""
    return [
        Beside(
            peer,
            figures.figures(peer),
            tuple((target, kld_ratio(target, peer)) for target in manifest.targets if target.name in peer.targets),
        )
        for peer in manifest.peers
    ]
