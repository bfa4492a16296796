"""What others have published of the same types: for orientation beside a plot, never for a gate."""

from __future__ import annotations

from dataclasses import dataclass

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
