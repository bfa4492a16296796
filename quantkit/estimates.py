"""What a run will need and what it lacks: the arithmetic of the footprint modules put to a recipe on this machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from quantkit import (
    arch,
    baseline,
    footprint,
    footprint_run,
    peer_files,
    planning,
    publishing,
    quality,
    requirements,
    solved,
)
from quantkit.calibration import corpus
from quantkit.codecs import gguf_config
from quantkit.engines import llama_cpp
from quantkit.formats.carried import carried
from quantkit.formats.gguf import writer
from quantkit.formats.gptq import layout as gptq_layout
from quantkit.formats.onnx import builder
from quantkit.formats.onnx import layout as onnx_layout
from quantkit.planning import Missing, Needs, TargetPlan
from quantkit.quality import CHUNK
from quantkit.recipe import SANITY_CHECKS, Calibration, Checks, Recipe
from quantkit.report import machine
from quantkit.values import Snapshot

# Of one core, rounded down from benchmarks/LOG.md; they carry the estimate of time and nothing else.
ENCODED_WEIGHTS_PER_SECOND = 15e6
FLOPS_OF_THE_WALK = 20e9
FLOPS_OF_THE_ENGINE = 15e9
BYTES_PER_SECOND_OF_DECODE = 5e9
GPTQ_OVER_A_FORWARD = 2.0
PEER_WEIGHTS_PER_SECOND = 4e6


def estimate(
    recipe: Recipe, snapshot: Snapshot, targets: Sequence[TargetPlan], original: TargetPlan | None, threads: int, folder: Path
) -> Needs:
    """Download, disk, peak memory and time of a run in `folder`. The download is exact, the rest estimated. original: the GGUF
    file that GGUF artefacts are compared with."""
    dimensions, made = footprint.dimensions(snapshot.config), [target.target.format for target in targets]
    torch = recipe.calibration is not None or recipe.checks is not None
    process = footprint_run.process_memory(dimensions.vocabulary, torch=torch, onnx="onnx" in made)
    steps = [0, *_making_memory(snapshot, targets, original if recipe.checks else None, threads)]
    seconds = snapshot.parameters() * len(targets) / (ENCODED_WEIGHTS_PER_SECOND * threads)
    if recipe.calibration is not None:
        steps += _calibration_memory(recipe.calibration, snapshot, targets, threads)
        forward = 2.0 * snapshot.parameters() * recipe.calibration.tokens / (FLOPS_OF_THE_WALK * threads)
        seconds += forward * any(target.imatrix is True for target in recipe.targets if target.format != "gptq")
        seconds += GPTQ_OVER_A_FORWARD * forward * sum(target.solved for target in targets)
    if recipe.checks is not None:
        steps += _check_memory(recipe.checks, snapshot, targets, original, threads, folder)
        seconds += _check_seconds(recipe.checks, snapshot, len(targets), threads)
        peers = [peer.plans[0] for peer in peer_files.wanted(recipe.checks, targets)]
        if peers and original:
            steps.append(sum(footprint_run.quantizer_memory(original.rows).values()))
            seconds += len(peers) * _peer_seconds(recipe.checks, snapshot, threads)
    disk = _disk(recipe, snapshot, targets, original, folder)
    return Needs(download=snapshot.download_bytes, disk=disk, memory=process + max(steps), seconds=seconds)


def _making_memory(
    snapshot: Snapshot, targets: Sequence[TargetPlan], original: TargetPlan | None, threads: int
) -> Iterator[int]:
    layers = footprint.dimensions(snapshot.config).layers
    for target in (*targets, *([original] if original else [])):
        if target.target.format == "gguf":
            slab, ahead = writer.SLAB_WEIGHTS, writer.LOOKAHEAD_BYTES
            terms = footprint_run.conversion_memory(target.rows, slab_weights=slab, threads=threads, ahead=ahead)
            yield sum(terms.values())
        elif target.target.format == "onnx":
            held = _exported_bytes(snapshot)
            inline = 0 if _data(target) in _names(target) else _file_bytes(target)
            yield footprint_run.onnx_conversion_memory(target.rows, layers, held=held, inline=inline)


def _calibration_memory(
    calibration: Calibration, snapshot: Snapshot, targets: Sequence[TargetPlan], threads: int
) -> Iterator[int]:
    config, sequences, length = snapshot.config, calibration.sequences, calibration.length
    if any(target.weighed for target in targets):
        yield sum(footprint_run.walk_memory(config, sequences, length, 1, threads=threads).values())
    if solved := [target.gptq for target in targets if target.solved]:
        narrow = all(target.activations == "bfloat16" for target in solved)
        high = any(target.quality == "high" for target in solved)
        tokens = sequences * length
        terms = footprint_run.gptq_memory(config, tokens, length, narrow=narrow, lanes=len(solved), originals=high)
        yield sum(terms.values())


def _check_memory(
    checks: Checks,
    snapshot: Snapshot,
    targets: Sequence[TargetPlan],
    original: TargetPlan | None,
    threads: int,
    folder: Path,
) -> Iterator[int]:
    """The walk that makes the reference; then every artefact beside the original's head, and the unquantised models, which
    answer and are timed without it."""
    config, chunks = snapshot.config, checks.perplexity.chunks
    yield sum(footprint_run.walk_memory(config, chunks, CHUNK, 1, threads=threads).values())
    head = sum(footprint_run.head_memory(config, chunks, CHUNK).values())
    isa = machine.instruction_sets()
    for target in (*targets, *([original] if original else [])):
        size = _file_bytes(target)
        if target.target.format == "gguf":
            outputs = 1 if target is original else CHUNK
            engine = footprint.memory(size, target.rows, config, [CHUNK], instruction_sets=isa, outputs=outputs)[0].growth
            yield footprint_run.LLAMA_CPP_CHECKS + engine + (0 if target is original else head)
        elif target.target.format == "onnx":
            held = _exported_bytes(snapshot)
            graph = footprint_run.onnx_conversion_memory((), footprint.dimensions(config).layers, held=held)
            engine = requirements.predict("onnx", size, target.rows, snapshot, [CHUNK])[0].growth
            yield graph + engine + head
            largest = max((math.prod(row.shape) for row in target.rows), default=0)
            whole = _float_graph_bytes(snapshot, folder)  # or transformers' model; a matrix more while it is packed
            yield graph + whole + 4 * largest
        else:
            yield sum(footprint_run.walk_memory(config, chunks, CHUNK, 1, threads=threads).values()) + head


def _file_bytes(target: TargetPlan) -> int:
    return target.nbytes or sum(row.nbytes for row in target.rows)


def _names(target: TargetPlan) -> list[str]:
    return [file.name for file in target.files]


def _data(target: TargetPlan) -> str:
    """The data file of an ONNX folder, if its graphs do not hold their weights themselves."""
    return onnx_layout.data(target.onnx, [name for name in _names(target) if name.endswith(".onnx")])


def _exported_bytes(snapshot: Snapshot) -> int:
    """Of the float32 weights that a graph of transformers' exporter holds while the run lasts; genai's builder has none."""
    return 0 if snapshot.config["model_type"] in builder.KNOWN else 4 * snapshot.parameters()


def _float_graph_bytes(snapshot: Snapshot, folder: Path) -> int:
    """Of the float32 graph that ONNX artefacts are compared with, whole or cut."""
    whole = baseline.float_graph_fits(snapshot, folder)
    return 4 * (snapshot if whole else baseline.first_layers(snapshot)).parameters()


def _disk(recipe: Recipe, snapshot: Snapshot, targets: Sequence[TargetPlan], original: TargetPlan | None, folder: Path) -> int:
    """The most that download and build folder hold: while codes are solved, or at the end, artefacts and the larger of the
    unquantised models, of which one is there at a time."""
    kept = snapshot.download_bytes + sum(_importance_bytes(target) for target in targets)
    states, codes = 0, sum(_codes_bytes(target) for target in targets)
    if recipe.calibration is not None and (lanes := [target.gptq for target in targets if target.solved]):
        held = 2 if all(target.activations == "bfloat16" for target in lanes) else 4
        count = len(lanes) + any(target.quality == "high" for target in lanes)
        layer = held * count * recipe.calibration.tokens * footprint.dimensions(snapshot.config).hidden
        states = 2 * layer  # a layer's output beside the last one's, which it takes the place of
    folders = sum(target.target.format != "gguf" for target in targets)
    beside = sum(len(text.encode()) for text in carried(snapshot).values()) if folders and snapshot.tokenizer else 0
    made = sum(_file_bytes(target) for target in targets) + folders * beside
    checked = 0
    if recipe.checks is not None:
        peers = [_file_bytes(peer.plans[0]) for peer in peer_files.wanted(recipe.checks, targets)]  # one at a time
        originals = [_file_bytes(original) + max(peers, default=0)] if original else []
        if any(target.target.format == "onnx" for target in targets):
            originals.append(_float_graph_bytes(snapshot, folder) + beside)
        checked = _reference_bytes(recipe.checks, snapshot) + max(originals, default=0)
    return kept + codes + max(states, made + checked)


def _codes_bytes(target: TargetPlan) -> int:
    """What GPTQ's lane leaves on disk: as the file will have it; for an ONNX graph a byte for every code, and its grid."""
    if not target.solved:
        return 0
    rows = solved.quantised(target)
    if target.target.format != "onnx":
        return sum(row.nbytes for row in rows)
    groups = [(math.prod(row.shape), gptq_layout.of_type(row.type)) for row in rows]
    return sum(count + 5 * count // settings.group for count, settings in groups if settings)


def _importance_bytes(target: TargetPlan) -> int:
    """Of what calibration saw, squares and means of every column, kept for a later run and for llama-quantize."""
    if not target.weighed:
        return 0
    return sum(2 * 8 * math.prod(row.shape[:-2]) * row.shape[-1] for row in target.rows if len(row.shape) > 1)


def _reference_bytes(checks: Checks, snapshot: Snapshot) -> int:
    return 4 * checks.perplexity.chunks * CHUNK * footprint.dimensions(snapshot.config).hidden


def _check_seconds(checks: Checks, snapshot: Snapshot, targets: int, threads: int) -> float:
    """Forwards of the evaluation text through the walk and through every engine, and the latency rounds."""
    weights = snapshot.parameters()
    text = 2.0 * weights * checks.perplexity.chunks * CHUNK
    rounds = checks.latency.rounds * (targets + 1)
    speed = rounds * (2.0 * weights * checks.latency.prompt / (FLOPS_OF_THE_ENGINE * threads))
    speed += rounds * checks.latency.decode * weights / BYTES_PER_SECOND_OF_DECODE
    return text / (FLOPS_OF_THE_WALK * threads) + targets * text / (FLOPS_OF_THE_ENGINE * threads) + speed


def _peer_seconds(checks: Checks, snapshot: Snapshot, threads: int) -> float:
    """llama.cpp's quantiser, and the evaluation text through its file."""
    weights, tokens = snapshot.parameters(), checks.perplexity.chunks * CHUNK
    return weights / (PEER_WEIGHTS_PER_SECOND * threads) + 2.0 * weights * tokens / (FLOPS_OF_THE_ENGINE * threads)


def lacking(recipe: Recipe, snapshot: Snapshot, targets: Sequence[TargetPlan], needs: Needs, folder: Path) -> Iterator[Missing]:
    """Everything that stops the run, each with its remedy."""
    if snapshot.reconstructed:
        yield Missing("weights", f"{snapshot.uri} has no weights: it can be planned, not run; fetch its .safetensors files")
    elif snapshot.tokenizer is None:
        yield Missing(
            "tokenizer",
            f"{snapshot.uri} has no tokenizer: load it with transformers and save it beside the weights",
        )
    yield from _too_long(recipe, snapshot)
    yield from _idle_gates(recipe, snapshot)
    for destination in recipe.publish:
        if (obstacle := publishing.obstacle(destination, [target.target for target in targets])) is not None:
            yield Missing("publish", obstacle)
    formats = {target.target.format for target in targets}
    if recipe.checks is not None and "gguf" in formats and llama_cpp.available() is None:
        yield Missing(
            "engine", "the checks run in llama.cpp, which is not installed: make setup, or checks: false in the recipe"
        )
    for target in targets if recipe.strict else ():
        for row in target.fallbacks:
            yield Missing("strict", f"strict: {target.name}: {row.name} would be {row.type}: {row.reason}")
    if peer_files.wanted(recipe.checks, targets) and baseline.is_cut(snapshot, folder):
        yield Missing("memory", baseline.NO_PEER)
    yield from planning.shortages(needs, folder, memory=machine.memory_bytes())


def _too_long(recipe: Recipe, snapshot: Snapshot) -> Iterator[Missing]:
    """Sequences beyond the model's context; an encoder is given each in several texts."""
    context, kind = gguf_config.context_length(snapshot.config), quality.kind(snapshot)
    parts = corpus.TEXTS if kind == "encoder" else 1
    if recipe.calibration is not None and recipe.calibration.length > parts * context:
        yield Missing(
            "context", f"calibration: length {recipe.calibration.length} exceeds the model's context of {context} tokens"
        )
    if recipe.checks is not None and parts * context < CHUNK:
        what = f"texts of {CHUNK // parts}" if parts > 1 else f"chunks of {CHUNK}"
        yield Missing("context", f"the checks score {what} tokens, the model's context is {context}: checks: false")


_ABSENT: dict[arch.Kind, dict[str, tuple[str, ...]]] = {
    "decoder": {"embedding": ()},
    "encoder": {"perplexity": (), "divergence": (), "cloze": (), "latency": ("min_decode_ratio",)},
    "encoder-decoder": {"embedding": (), "cloze": ()},
}
"""Checks that a kind of model has not, with their limits; none: all of them."""


def _idle_gates(recipe: Recipe, snapshot: Snapshot) -> Iterator[Missing]:
    """Limits that a recipe of its own sets on what this kind of model has not."""
    kind = quality.kind(snapshot)
    if recipe.checks is None or recipe.checks == SANITY_CHECKS:
        return
    checks = recipe.checks.model_dump()
    for check, limits in _ABSENT[kind].items():
        for key, value in checks[check].items():
            if value is not None and key.startswith(("max_", "min_")) and (not limits or key in limits):
                other = "embedding: {min_cosine: ..., min_rank: ...}" if kind == "encoder" else "perplexity and divergence"
                yield Missing("checks", f"checks: {check}: {key} is not for a model of this kind ({kind}): use {other}")


def notes(recipe: Recipe, snapshot: Snapshot, targets: Sequence[TargetPlan]) -> Iterator[str]:
    """What a reader of the plan should know."""
    if snapshot.reconstructed:
        yield "the list of tensors is reconstructed from config.json by transformers' model; no weights were seen"
    if stored := snapshot.quantised():
        yield f"the source is itself quantised ({stored}): its dequantised weights are the original here"
    widest = max((row.shape[-1] for target in targets for row in target.rows if target.solved), default=0)
    if recipe.calibration is not None and recipe.calibration.tokens < widest:
        yield (
            f"calibration: {recipe.calibration.tokens} tokens are fewer than the {widest} columns of the widest matrix: GPTQ "
            f"cannot know how its columns go together; give at least {widest} tokens"
        )
    for target in targets:
        if target.fallbacks:
            share = sum(math.prod(row.shape) for row in target.fallbacks) / max(snapshot.parameters(), 1)
            yield (
                f"{target.name}: {len(target.fallbacks)} tensors, {100 * share:.0f}% of the weights, cannot have the type that "
                f"{target.target.label} wants; {target.bits_per_weight:.2f} bits per weight in effect"
            )
