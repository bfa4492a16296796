"""The figures that a person compares artefacts by, read from a manifest once for the table, the card and the page."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial

from quantkit import footprint
from quantkit.manifest import CheckRecord, Manifest, PeerRecord, SourceRecord, TargetRecord, Verdict

MARKS = {"pass": "✓", "fail": "✗", "unresolved": "?", "unchecked": "–", "report": "·"}
"""A sign for every verdict, so that none relies on colour."""


DESKTOP = 50e9  # bytes/s: two channels of DDR4-3200, near enough


@dataclass(frozen=True, slots=True)
class Figures:
    """One artefact's figures; None where nothing measured it. `*_error` is a standard error clustered by chunk."""

    ratio: float | None
    ratio_error: float | None
    kld: float | None
    kld_error: float | None
    same_top: float | None
    same_top_error: float | None
    cosine: float | None  # of an encoder's embeddings
    cosine_error: float | None
    rank: float | None
    rank_error: float | None
    cloze: float | None  # share of right answers less the original's
    cloze_error: float | None
    prefill: float | None  # tokens/s
    prefill_ratio: float | None  # against the unquantised model in the same run
    decode: float | None
    decode_ratio: float | None
    peak_rss: int | None


@dataclass(frozen=True, slots=True)
class Column:
    """A measure of quality: Figures' field `key`, its error under `key`_error. digits: None for a share in percent."""

    head: str
    unit: str
    key: str
    digits: int | None

    def cell(self, figures: Figures, *, error: bool = True) -> str:
        value, spread = getattr(figures, self.key), getattr(figures, f"{self.key}_error") if error else None
        return percent(value, spread) if self.digits is None else number(value, self.digits, spread)

    def spread(self, figures: Figures) -> str:
        value = getattr(figures, f"{self.key}_error")
        return percent(value) if self.digits is None else number(value, self.digits)


LOGITS = (
    Column("Perplexity ratio", "", "ratio", 4), Column("Mean KLD", "nats", "kld", 4), Column("Same top-1", "", "same_top", None)
)  # fmt: skip
CLOZE = Column("Cloze", "", "cloze", None)
EMBEDDINGS = (Column("Cosine", "", "cosine", 5), Column("Rank correlation", "", "rank", 4))


@dataclass(frozen=True, slots=True)
class Fallback:
    """Tensors that got another type than their mixture asked for, for one and the same reason."""

    wanted: str
    type: str
    reason: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """Greedy answers to one prompt; `artefacts` holds (title, answer)."""

    prompt: str
    original: str
    artefacts: tuple[tuple[str, str], ...]


def measured(target: TargetRecord | PeerRecord, check: str, key: str) -> float | None:
    """A number that a check of an artefact gave; None where there is none."""
    found = next((record.values.get(key) for record in target.checks if record.check == check), None)
    return None if isinstance(found, str) else found


def spread(target: TargetRecord, part: str) -> tuple[float | None, float | None]:
    """Least and greatest ratio of the rounds in which "prefill" or "decode" was timed."""
    return measured(target, "latency", f"{part}_ratio_min"), measured(target, "latency", f"{part}_ratio_max")


def figures(target: TargetRecord | PeerRecord) -> Figures:
    """The figures of one artefact, or of a peer's file, whose speed nobody measures."""
    value = partial(measured, target)
    speed, baseline = (target.speed, target.baseline) if isinstance(target, TargetRecord) else (None, None)
    prefill, decode = value("latency", "prefill_ratio"), value("latency", "decode_ratio")  # medians over rounds
    if speed and baseline:
        prefill = prefill or speed.prefill_tokens_per_s / baseline.prefill_tokens_per_s
    if speed and baseline and speed.decode_tokens_per_s and baseline.decode_tokens_per_s:
        decode = decode or speed.decode_tokens_per_s / baseline.decode_tokens_per_s
    return Figures(
        ratio=value("perplexity", "ratio"),
        ratio_error=value("perplexity", "ratio_error"),
        kld=value("divergence", "mean_kld"),
        kld_error=value("divergence", "mean_kld_error"),
        same_top=value("divergence", "same_top"),
        same_top_error=value("divergence", "same_top_error"),
        cosine=value("embedding", "cosine"),
        cosine_error=value("embedding", "cosine_error"),
        rank=value("embedding", "rank"),
        rank_error=value("embedding", "rank_error"),
        cloze=value("cloze", "difference"),
        cloze_error=value("cloze", "difference_error"),
        prefill=speed.prefill_tokens_per_s if speed else None,
        prefill_ratio=prefill,
        decode=speed.decode_tokens_per_s if speed else None,
        decode_ratio=decode,
        peak_rss=speed.peak_rss_bytes if speed else None,
    )


def quality(manifest: Manifest) -> tuple[Column, ...]:
    """The measures that this kind of model has."""
    embedded = any(check.check == "embedding" for target in manifest.targets for check in target.checks)
    return EMBEDDINGS if embedded else LOGITS


def second_opinion(manifest: Manifest) -> tuple[Column, ...]:
    """What goes beside `quality` where there is room for it."""
    return (CLOZE,) if any(figures(target).cloze is not None for target in manifest.targets) else ()


def fallbacks(target: TargetRecord) -> list[Fallback]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for tensor in target.tensors:
        if tensor.type != tensor.wanted:
            groups.setdefault((tensor.wanted, tensor.type, tensor.reason), []).append(tensor.name)
    return [Fallback(*key, tuple(names)) for key, names in groups.items()]


def type_counts(target: TargetRecord) -> list[tuple[str, int]]:
    """(type, tensors), the most frequent first."""
    return Counter(tensor.type for tensor in target.tensors).most_common()


def fits(target: TargetRecord) -> dict[int, int | None]:
    """Machine in GB -> the largest context that runs on it, from the predicted memory."""
    return footprint.machine_classes({record.context: record.total for record in target.memory})


@dataclass(frozen=True, slots=True)
class MemoryPoint:
    """Bytes at one context: predicted, and measured where it was."""

    context: int
    predicted: int
    measured: int | None

    @property
    def error(self) -> float | None:
        """Of the prediction, as a share of what was measured."""
        return self.predicted / self.measured - 1 if self.measured else None


def memory_points(target: TargetRecord) -> list[MemoryPoint]:
    """Predicted and measured memory by context."""
    return [MemoryPoint(record.context, record.total, record.measured) for record in target.memory]


def worst_memory_error(manifest: Manifest) -> float | None:
    """The largest error of a prediction whose context was measured, as a share."""
    found = (point.error for target in manifest.targets for point in memory_points(target))
    return max((abs(error) for error in found if error is not None), default=None)


def answers(manifest: Manifest) -> list[Answers]:
    """The samples of all targets, by prompt: the original once, then every artefact's."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for target in manifest.targets:
        for sample in target.samples:
            groups.setdefault((sample.prompt, sample.original), []).append((target.title, sample.artefact))
    return [Answers(prompt, original, tuple(given)) for (prompt, original), given in groups.items()]


def ceilings(manifest: Manifest) -> list[tuple[float, list[tuple[str, float]]]]:
    """[(bandwidth, [(title, tokens/s)])]: a common desktop's, and this machine's where it was measured."""
    bandwidths = [DESKTOP, *([manifest.machine.bandwidth] if manifest.machine.bandwidth else [])]
    return [
        (width, [(t.title, most) for t in manifest.targets if (most := ceiling(t, width)) is not None]) for width in bandwidths
    ]


@dataclass(frozen=True, slots=True)
class Reach:
    """What memory and matrix products of this machine allow, tokens/s, beside what was measured; None where neither was."""

    title: str
    decode_ceiling: float | None
    decode: float | None
    prefill_ceiling: float | None
    prefill: float | None


def reach(manifest: Manifest) -> list[Reach]:
    """Of every artefact whose speed was measured."""
    here, found = manifest.machine, []
    for target in manifest.targets:
        if target.speed is None:
            continue
        multiplied = sum(math.prod(each.shape) for each in target.tensors if each.source and len(each.shape) > 1)
        found.append(
            Reach(
                target.title,
                ceiling(target, here.bandwidth) if here.bandwidth else None,
                target.speed.decode_tokens_per_s,
                footprint.prefill_ceiling(here.flops, multiplied, here.instruction_sets) if here.flops and multiplied else None,
                target.speed.prefill_tokens_per_s,
            )
        )
    return found


def ceiling(target: TargetRecord, bandwidth: float) -> float | None:
    """Tokens/s that a memory bandwidth (bytes/s) allows when the cache is still short."""
    read = footprint.bytes_per_token({tensor.name: tensor.nbytes for tensor in target.tensors})
    return footprint.decode_ceiling(bandwidth, read) if read else None


def verdict_sentence(manifest: Manifest) -> str:
    counts = Counter(target.verdict for target in manifest.targets)
    words: dict[Verdict, str] = {
        "pass": "passed every gate",
        "fail": "failed",
        "unresolved": "unresolved",
        "unchecked": "not checked",
    }
    parts = [f"{counts[verdict]} {word}" for verdict, word in words.items() if counts[verdict]]
    total = len(manifest.targets)
    return f"{total} artefact{'s' if total != 1 else ''}: {', '.join(parts)}."


def licence_sentence(source: SourceRecord) -> str:
    if source.licence is None:
        return "The source does not say under which licence it is. Find out before you pass this on."
    name = source.licence_name or source.licence
    return f"Inherited from the source: {name}."


def limits(record: CheckRecord) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {limit:g}" for name, limit in record.limits.items()) or "–"


def moment(created: str) -> str:
    """2026-01-01T00:00:00Z as 2026-01-01 00:00 UTC; anything else as it is."""
    return f"{created[:10]} {created[11:16]} UTC" if re.fullmatch(r"[\d-]{10}T[\d:]{8}.*(Z|\+00:00)", created) else created


def size(nbytes: int) -> str:
    """Of a file, in decimal units, as the Hub and shops write it."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def memory(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"


def count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def number(value: float | None, digits: int, error: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if error is None else f"{value:.{digits}f} ± {error:.{digits}f}"


def percent(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if error is None else f"{value * 100:.1f} ± {error * 100:.1f}%"


def rate(value: float | None) -> str:
    """Tokens per second, three significant figures and no exponent."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def signed_percent(value: float) -> str:
    return f"{value:+.1%}".replace("-", "−")


def times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def any_value(value: float | int | str) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
