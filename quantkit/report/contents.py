"""report.json: what report.html says, as data. Figures derived from a manifest; the manifest itself lies beside it."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict

from quantkit.manifest import CostRecord, MachineRecord, Manifest, SampleRecord, TargetRecord, Verdict
from quantkit.report import figures, layers, peers
from quantkit.report.figures import Figures
from quantkit.report.peers import Beside

SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_serialization_defaults_required=True)


class Measure(_Frozen):
    """A measured mean; `error` is its standard error clustered by chunk of text, None where one chunk was measured."""

    value: float
    error: float | None


class Quality(_Frozen):
    """Against the original, on the same text; None where it was not measured or the kind of model has no such measure."""

    perplexity_ratio: Measure | None
    mean_kld: Measure | None  # nats per token
    same_top: Measure | None  # share of tokens
    cloze_difference: Measure | None  # share of right answers less the original's
    cosine: Measure | None
    rank: Measure | None


class Pace(_Frozen):
    """Tokens per second, and over the unquantised model's in the same run: the median, least and greatest of the rounds."""

    tokens_per_s: float
    baseline_tokens_per_s: float | None
    ratio: float | None
    least_ratio: float | None
    greatest_ratio: float | None


class Speed(_Frozen):
    engine: str
    threads: int
    baseline: str | None  # what the ratios are against
    prefill: Pace
    decode: Pace | None  # None: an encoder decodes nothing
    first_token_seconds: float
    load_seconds: float
    peak_rss_bytes: int


class MemoryPoint(_Frozen):
    """Bytes at one context; error: the prediction over the measurement, less one."""

    context: int
    predicted: int
    measured: int | None
    error: float | None


class Fit(_Frozen):
    """The largest context that runs on a machine of so many GiB without a GPU; None: no context does."""

    machine_gib: int
    context: int | None


class Ceiling(_Frozen):
    """Decoded tokens per second that a memory bandwidth allows at a short context."""

    bytes_per_s: float
    measured_here: bool
    tokens_per_s: float


class Reach(_Frozen):
    """Tokens per second that this machine's memory and matrix products allow, beside what was measured."""

    decode_ceiling: float | None
    decode: float | None
    prefill_ceiling: float | None
    prefill: float | None


class LayerError(_Frozen):
    """sqrt(sum (w - decoded)^2 / sum w^2) of a tensor, on the written file; of experts the greatest."""

    role: str
    block: int
    relative_error: float


class Fallback(_Frozen):
    wanted: str
    type: str
    reason: str
    tensors: list[str]


class Check(_Frozen):
    check: str
    verdict: str
    summary: str
    limits: dict[str, float]
    engine: str


class Target(_Frozen):
    name: str
    format: str
    type: str
    codes: str  # search or gptq: how they were chosen
    mark: str  # what tells it from others of its type
    file: str  # the one to open
    verdict: Verdict
    nbytes: int
    bits_per_weight: float
    types: dict[str, int]  # tensors of each
    fallbacks: list[Fallback]
    checks: list[Check]
    quality: Quality
    speed: Speed | None
    memory: list[MemoryPoint]
    fits: list[Fit]
    ceilings: list[Ceiling]
    layers: list[LayerError]
    samples: list[SampleRecord]
    made_in_seconds: float
    made_with_bytes: int  # peak RSS


class Source(_Frozen):
    name: str
    uri: str
    commit: str | None
    architecture: str
    parameters: int
    context_length: int
    licence: str | None
    already_quantised: str | None


class Peer(_Frozen):
    """Another maker's file of a target's type, of the same weights and importance, measured in the same run and deleted.
    kld_ratios: target's name -> its mean KL divergence over this file's."""

    maker: str
    type: str
    mark: str
    nbytes: int
    bits_per_weight: float
    engine: str
    quality: Quality
    kld_ratios: dict[str, float]
    made_in_seconds: float
    made_with_bytes: int  # peak RSS


class Orientation(_Frozen):
    """What a type's makers published, of another model and text."""

    type: str
    bits_per_weight: float
    mean_kld: float


class Report(_Frozen):
    """One run's report: verdict, and by target sizes, quality, speed, memory and errors."""

    schema_version: int = SCHEMA_VERSION
    quantkit: str
    created: str  # UTC, ISO 8601
    recipe: str
    verdict: Verdict
    sentence: str
    published: list[str]
    source: Source
    text: dict[str, str]  # name -> sha256 of the evaluation text
    machine: MachineRecord
    cost: CostRecord | None
    reach: dict[str, Reach]  # by the artefact's title
    targets: list[Target]
    peers: list[Peer]
    orientation: list[Orientation]
    orientation_source: str


def of(manifest: Manifest) -> Report:
    """The report of a manifest."""
    source = manifest.source
    return Report(
        quantkit=manifest.quantkit,
        created=manifest.created,
        recipe=manifest.recipe.name,
        verdict=manifest.verdict,
        sentence=figures.verdict_sentence(manifest),
        published=manifest.published,
        source=Source(**source.model_dump(include=set(Source.model_fields))),
        text=manifest.text,
        machine=manifest.machine,
        cost=manifest.cost,
        reach={
            each.title: Reach(
                decode_ceiling=each.decode_ceiling,
                decode=each.decode,
                prefill_ceiling=each.prefill_ceiling,
                prefill=each.prefill,
            )
            for each in figures.reach(manifest)
        },
        targets=[_target(target, manifest.machine.bandwidth) for target in manifest.targets],
        peers=[_peer(each) for each in peers.beside(manifest)],
        orientation=[
            Orientation(type=peer.type, bits_per_weight=peer.bits_per_weight, mean_kld=peer.kld) for peer in peers.LLAMA_CPP
        ],
        orientation_source=peers.SOURCE,
    )


def schema() -> dict[str, Any]:
    """The JSON Schema of report.json."""
    return Report.model_json_schema(mode="serialization")


def _target(target: TargetRecord, bandwidth: float | None) -> Target:
    found = figures.figures(target)
    widths = [(figures.DESKTOP, False), *([(bandwidth, True)] if bandwidth else [])]
    return Target(
        name=target.name,
        format=target.format,
        type=target.type,
        codes=target.codes,
        mark=target.mark,
        file=target.file,
        verdict=target.verdict,
        nbytes=target.nbytes,
        bits_per_weight=target.bits_per_weight,
        types=dict(figures.type_counts(target)),
        fallbacks=[
            Fallback(wanted=each.wanted, type=each.type, reason=each.reason, tensors=list(each.tensors))
            for each in figures.fallbacks(target)
        ],
        checks=[Check(**check.model_dump(include=set(Check.model_fields))) for check in target.checks],
        quality=_quality(found),
        speed=_speed(target, found),
        memory=[
            MemoryPoint(context=point.context, predicted=point.predicted, measured=point.measured, error=point.error)
            for point in figures.memory_points(target)
        ],
        fits=[Fit(machine_gib=size, context=context) for size, context in figures.fits(target).items()]
        if target.memory
        else [],
        ceilings=[
            Ceiling(bytes_per_s=width, measured_here=here, tokens_per_s=most)
            for width, here in widths
            if (most := figures.ceiling(target, width)) is not None
        ],
        layers=[
            LayerError(role=role, block=block, relative_error=error) for (role, block), error in layers.errors(target).items()
        ],
        samples=target.samples,
        made_in_seconds=target.seconds,
        made_with_bytes=target.peak_rss_bytes,
    )


def _peer(found: Beside) -> Peer:
    peer, ratios = found.peer, {target.name: ratio for target, ratio in found.ratios}
    return Peer(
        maker=peer.maker,
        type=peer.type,
        mark=peer.mark,
        nbytes=peer.nbytes,
        bits_per_weight=peer.bits_per_weight,
        engine=next((check.engine for check in peer.checks), ""),
        quality=_quality(found.figures),
        kld_ratios={name: ratio for name, ratio in ratios.items() if ratio is not None and math.isfinite(ratio)},
        made_in_seconds=peer.seconds,
        made_with_bytes=peer.peak_rss_bytes,
    )


def _quality(found: Figures) -> Quality:
    def measure(value: float | None, error: float | None) -> Measure | None:
        return None if value is None or not math.isfinite(value) else Measure(value=value, error=error)

    return Quality(
        perplexity_ratio=measure(found.ratio, found.ratio_error),
        mean_kld=measure(found.kld, found.kld_error),
        same_top=measure(found.same_top, found.same_top_error),
        cloze_difference=measure(found.cloze, found.cloze_error),
        cosine=measure(found.cosine, found.cosine_error),
        rank=measure(found.rank, found.rank_error),
    )


def _speed(target: TargetRecord, found: Figures) -> Speed | None:
    speed, baseline = target.speed, target.baseline
    if speed is None:
        return None

    def pace(part: str, rate: float, ratio: float | None) -> Pace:
        least, greatest = figures.spread(target, part)
        return Pace(
            tokens_per_s=rate,
            baseline_tokens_per_s=getattr(baseline, f"{part}_tokens_per_s") if baseline else None,
            ratio=ratio,
            least_ratio=least,
            greatest_ratio=greatest,
        )

    return Speed(
        engine=speed.engine,
        threads=speed.threads,
        baseline=target.baseline_label,
        prefill=pace("prefill", speed.prefill_tokens_per_s, found.prefill_ratio),
        decode=pace("decode", speed.decode_tokens_per_s, found.decode_ratio) if speed.decode_tokens_per_s else None,
        first_token_seconds=speed.first_token_seconds,
        load_seconds=speed.load_seconds,
        peak_rss_bytes=speed.peak_rss_bytes,
    )
