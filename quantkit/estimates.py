"""What a run will need and what it lacks: the arithmetic of footprint.py put to a recipe on this machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from quantkit import arch, baseline, footprint, footprint_onnx, peer_files, planning, publishing, quality
from quantkit.calibration import corpus
from quantkit.codecs import gguf_config
from quantkit.engines import llama_cpp
from quantkit.formats.gguf import writer
from quantkit.planning import Missing, Needs, TargetPlan
from quantkit.quality import CHUNK
from quantkit.recipe import SANITY_CHECKS, Checks, Recipe
from quantkit.report import machine
from quantkit.values import Snapshot

# Of one core, rounded down from benchmarks/LOG.md; they carry the estimate of time and nothing else.
ENCODED_WEIGHTS_PER_SECOND = 15e6
PEER_WEIGHTS_PER_SECOND = 4e6
FLOPS_OF_THE_WALK = 20e9
FLOPS_OF_THE_ENGINE = 15e9
BYTES_PER_SECOND_OF_DECODE = 5e9
GPTQ_OVER_A_FORWARD = 2.0


def estimate(
    recipe: Recipe, snapshot: Snapshot, targets: Sequence[TargetPlan], original: TargetPlan | None, threads: int, folder: Path
) -> Needs:
    """Download, disk, peak memory and time of a run in `folder`. The download is exact, the rest estimated. original: the GGUF
    file that GGUF artefacts are compared with."""
    files = [_file_bytes(target) for target in targets]
    ggufs = [target for target in targets if target.target.format == "gguf"]
    solved = [target for target in targets if target.solved]
    steps = [
        sum(footprint.conversion_memory(target.rows, slab_weights=writer.SLAB_WEIGHTS, threads=threads).values())
        for target in (*ggufs, *([original] if original else []))
    ]
    steps += [footprint.onnx_conversion_memory(target.rows) for target in targets if target.target.format == "onnx"]
    seconds = snapshot.parameters() * len(targets) / (ENCODED_WEIGHTS_PER_SECOND * threads)
    disk = snapshot.download_bytes + sum(files)
    if recipe.calibration is not None:
        sequences = recipe.calibration.sequences
        steps.append(
            sum(footprint.walk_memory(snapshot.config, sequences, recipe.calibration.length, 1, threads=threads).values())
        )
        forward = 2.0 * snapshot.parameters() * recipe.calibration.tokens / (FLOPS_OF_THE_WALK * threads)
        seconds += forward * any(target.imatrix is True for target in recipe.targets if target.format != "gptq")
        if solved:
            narrow = all(target.gptq.activations == "bfloat16" for target in solved)
            tokens = sequences * recipe.calibration.length
            high = any(target.gptq.quality == "high" for target in solved)
            need = footprint.gptq_memory(snapshot.config, tokens, narrow=narrow, lanes=len(solved), originals=high)
            steps.append(sum(need.values()))
            disk += sum(sum(row.nbytes for row in target.rows) for target in solved)  # the codes as they come
            seconds += GPTQ_OVER_A_FORWARD * forward * len(solved)
    if recipe.checks is not None:
        steps += _check_memory(recipe.checks, snapshot, targets, original, threads)
        disk += _file_bytes(original) if original else 0
        if any(target.target.format == "onnx" for target in targets):
            whole = baseline.float_graph_fits(snapshot, folder)
            disk += 4 * (snapshot if whole else baseline.first_layers(snapshot)).parameters()  # the float32 graph
        disk += _reference_bytes(recipe.checks, snapshot)
        seconds += _check_seconds(recipe.checks, snapshot, len(targets), threads)
        peers = [peer.plans[0] for peer in peer_files.wanted(recipe.checks, targets)]
        if peers and original:
            steps.append(sum(footprint.quantizer_memory(original.rows).values()))
            disk += max(map(_file_bytes, peers))  # one at a time, beside the baseline
            seconds += len(peers) * _peer_seconds(recipe.checks, snapshot, threads)
    return Needs(
        download=snapshot.download_bytes, disk=disk, memory=max(steps, default=footprint.CONVERSION_PROCESS), seconds=seconds
    )


def _file_bytes(target: TargetPlan) -> int:
    return target.nbytes or sum(row.nbytes for row in target.rows)


def _reference_bytes(checks: Checks, snapshot: Snapshot) -> int:
    return 4 * checks.perplexity.chunks * CHUNK * footprint.dimensions(snapshot.config).hidden


def _check_memory(
    checks: Checks, snapshot: Snapshot, targets: Sequence[TargetPlan], original: TargetPlan | None, threads: int
) -> Iterator[int]:
    config = snapshot.config
    chunks = checks.perplexity.chunks
    yield sum(footprint.walk_memory(config, chunks, CHUNK, 1, threads=threads).values())
    head = sum(footprint.head_memory(config, chunks, CHUNK).values())
    isa = machine.instruction_sets()
    for target in (*(each for each in targets if each.target.format == "gguf"), *([original] if original else [])):
        engine = footprint.memory(_file_bytes(target), target.rows, config, [CHUNK], instruction_sets=isa, outputs=CHUNK)
        yield engine[0].total - footprint.LLAMA_CPP_PROCESS + head
    for target in targets:
        if target.target.format == "onnx":
            yield footprint.TORCH_PROCESS + _onnxruntime(target, snapshot) + head


def _onnxruntime(target: TargetPlan, snapshot: Snapshot) -> int:
    """What an ONNX model takes in its engine: of a decoder as footprint_onnx.py knows it, of others the file and a copy."""
    if quality.kind(snapshot) != "decoder":
        return 2 * _file_bytes(target)
    (found,) = footprint_onnx.memory(_file_bytes(target), target.rows, snapshot.config, [CHUNK])
    return found.total - found.process


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
