"""What a GGUF file of a checkpoint will hold: its tensors with their types, its metadata, and its exact size."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

from quantkit import arch, checkpoint, version
from quantkit.codecs import gguf_config, gguf_tensors, gguf_vocab, imatrix
from quantkit.codecs.gguf import codecs
from quantkit.codecs.gguf_kv import KeyValue
from quantkit.codecs.gguf_tensors import Placement
from quantkit.errors import InputError, SourceError, UnsupportedError
from quantkit.formats.gguf import allocation, mixture, naming, splitting
from quantkit.planning import TargetPlan, bits_per_weight
from quantkit.targets import GGUF_TYPES, GgufTarget
from quantkit.values import F32, Importance, Row, Snapshot, stacked

QUANTIZATION_VERSION = 2
UNKNOWN_DIGEST = "0" * 64  # as long as a digest: the size is exact before the weights have been read


def plan(target: GgufTarget, digest: str, snapshot: Snapshot, model: str, mark: str = "") -> TargetPlan:
    """The plan of one GGUF file. digest: of the recipe's values that determine it; model: the name its file gets; mark: what
    tells it from another of its type.

    Raises UnsupportedError for an architecture or a tokenizer, SourceError or WeightError for weights that do not fit.
    """
    architecture = arch.find(snapshot.config)
    if not architecture.gguf:
        raise UnsupportedError(f"{target.name}: {architecture.model_type} has no GGUF form here; use format: onnx")
    checkpoint.verify(architecture, snapshot.config, snapshot.weights.infos)
    if target.type == "auto":
        return largest_stock(target, digest, snapshot, model, mark)
    return _plan(target, digest, snapshot, model, mark, _choices(target, snapshot, target.type))


def largest_stock(target: GgufTarget, digest: str, snapshot: Snapshot, model: str, mark: str = "") -> TargetPlan:
    """Of llama.cpp's mixtures the largest that fits an auto target's size: the plan until errors are measured, and what the
    measured choice has to beat. Raises InputError where none fits.
    """
    budget = target.budget(snapshot.parameters())
    kinds = [kind for kind in GGUF_TYPES if kind != "Q2_K_S" or target.weighed]
    plans = [_plan(target, digest, snapshot, model, mark, _choices(target, snapshot, kind)) for kind in kinds]
    sizes = {kind: _nbytes(plan) for kind, plan in zip(kinds, plans, strict=True)}
    fitting = [plan for plan in plans if budget is not None and _nbytes(plan) <= budget]
    if not fitting:
        least = min(sizes, key=sizes.__getitem__)
        raise InputError(
            f"{target.name}: {budget:,} bytes hold no mixture of this model; the smallest, {least}, takes {sizes[least]:,}"
        )
    return max(fitting, key=_nbytes)


def allocated(plan: TargetPlan, snapshot: Snapshot, errors: Mapping[str, Mapping[str, float]], model: str) -> TargetPlan | None:
    """An auto target's plan with the types that leave the least measured error within its size; None where none does.

    errors: tensor name -> candidate type -> relative error; tensors without an entry keep the planned type.
    """
    budget, tied = plan.gguf.budget(snapshot.parameters()), not any(row.name == "output.weight" for row in plan.rows)
    fixed = sum(splitting.padded(row.nbytes) for row in plan.rows if row.name not in errors)
    room = (budget or 0) - (_nbytes(plan) - sum(splitting.padded(row.nbytes) for row in plan.rows)) - fixed
    candidates = {
        row.name: [
            allocation.Candidate(
                kind, splitting.padded(_tensor_bytes(row.shape, kind)), error * allocation.weight(row.name, tied)
            )
            for kind, error in errors[row.name].items()
        ]
        for row in plan.rows
        if row.name in errors
    }
    chosen = allocation.allocate(candidates, room)
    if chosen is None:
        return None
    choices = {row.name: mixture.Choice(row.type, row.wanted, row.reason) for row in plan.rows}
    for name, one in chosen.items():
        choices[name] = mixture.Choice(one.type, one.type, "least measured error within the size")
    return _plan(plan.gguf, plan.digest, snapshot, model, plan.mark, choices)


def _nbytes(plan: TargetPlan) -> int:
    """Of the file, or of its tensors where the metadata is not known yet."""
    return plan.nbytes or sum(row.nbytes for row in plan.rows)


def _tensor_bytes(shape: tuple[int, ...], kind: str) -> int:
    return math.prod(shape[:-1]) * codecs()[kind].row_bytes(shape[-1])


def _plan(
    target: GgufTarget, digest: str, snapshot: Snapshot, model: str, mark: str, choices: Mapping[str, mixture.Choice]
) -> TargetPlan:
    rows = _rows(snapshot, choices)
    name = naming.file_name(model, snapshot.parameters(), target.label, mark)
    pairs = metadata(target, digest, snapshot) if snapshot.tokenizer else None
    files = splitting.files(name, rows, pairs, arch.find(snapshot.config).gguf, target.split)
    return TargetPlan(target, digest, files, bits_per_weight(rows), mark=mark)


def placements(snapshot: Snapshot) -> dict[str, Placement]:
    """GGUF name -> how that tensor is made of the checkpoint's."""
    return gguf_tensors.placements(arch.find(snapshot.config), snapshot.config, snapshot.weights.infos)


def model(snapshot: Snapshot) -> mixture.Model:
    """What the mixture's rules ask of a checkpoint."""
    architecture = arch.find(snapshot.config)
    config = arch.standard(architecture, snapshot.config)
    counts = (config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"])
    return mixture.Model(architecture.gguf, *counts, experts=config.get("num_experts", 0))


def base_type(target: GgufTarget) -> str:
    """llama.cpp's file type that a target is nearest to; of one with types of its own, a name for what most tensors are."""
    return "Q4_K_M" if target.type == "auto" else target.type


def wish(target: GgufTarget) -> mixture.Wish:
    """What a recipe's target says of types beyond the file type."""
    rules = tuple((rule.match, rule.type) for rule in target.rules)
    return mixture.Wish(rules, target.output, target.token_embd, target.pure)


def _shapes(snapshot: Snapshot) -> dict[str, tuple[int, ...]]:
    shapes = {name: placement.shape for name, placement in placements(snapshot).items()}
    return shapes | {name: value.shape for name, value in extra_tensors(snapshot).items()}


def _choices(target: GgufTarget, snapshot: Snapshot, kind: str) -> dict[str, mixture.Choice]:
    """The types of llama.cpp's file type `kind` with the recipe's own rules."""
    return mixture.choose(kind, _shapes(snapshot), model(snapshot), imatrix=target.weighed, wish=wish(target))


def _rows(snapshot: Snapshot, choices: Mapping[str, mixture.Choice]) -> tuple[Row, ...]:
    infos, placed = snapshot.weights.infos, placements(snapshot)
    rows = []
    for name, shape in sorted(_shapes(snapshot).items(), key=lambda item: _place(item[0])):
        choice, placement = choices[name], placed.get(name)
        rows.append(
            Row(
                name=name,
                source=placement.source if placement else None,
                shape=shape,
                source_dtype=infos[placement.pieces[0].name].dtype if placement else "F32",
                type=choice.type,
                wanted=choice.wanted,
                reason=choice.reason if placement else "computed from config.json's rotary scaling",
                nbytes=_tensor_bytes(shape, choice.type),
            )
        )
    return tuple(rows)


def importance(snapshot: Snapshot, observed: Mapping[str, Importance]) -> dict[str, Importance]:
    """Importance under GGUF names, from that under the checkpoint's; for a stack that of its matrices. A tensor that was not
    observed, or not in all its parts, is left out."""
    found = {}
    for name, placement in placements(snapshot).items():
        parts = [piece.name for piece in placement.pieces]
        if all(part in observed for part in parts):
            seen = [observed[part] for part in parts]
            found[name] = seen[0] if len(set(parts)) == 1 else stacked(seen)
    return found


def read_importance(snapshot: Snapshot, path: Path) -> dict[str, Importance]:
    """The importance of an imatrix file for the tensors of this checkpoint. Raises SourceError, as for one of another model."""
    given, placed = imatrix.read(path), placements(snapshot)
    if not given.keys() & placed.keys():
        raise SourceError(f"{path.name} names no tensor of this model: it has {', '.join(sorted(given)[:3])}")
    return {
        name: imatrix.fitted(name, value, len(placed[name].pieces), placed[name].shape[-1])
        for name, value in given.items()
        if name in placed
    }


def imatrix_file(snapshot: Snapshot) -> str:
    """Downloaders take no file with imatrix in its name for a model."""
    return (
        f"imatrix-{naming.file_name(naming.model_name(snapshot), snapshot.parameters(), 'F32').removesuffix('-F32.gguf')}.gguf"
    )


def _place(name: str) -> tuple[int, int]:
    """Where a tensor lies in the file: the embedding, block after block, what follows; a mapped file is read in that order."""
    block = mixture.block(name)
    if block is not None:
        return 1, block
    return (2 if name.startswith("output") else 0), 0


def extra_tensors(snapshot: Snapshot) -> Mapping[str, F32]:
    """Tensors that GGUF wants and a checkpoint does not hold."""
    return gguf_config.extra_tensors(arch.find(snapshot.config), snapshot.config)


def metadata(target: GgufTarget, digest: str, snapshot: Snapshot) -> list[KeyValue]:
    """Every key of the file: the model's own, the tokenizer's, where it comes from and what made it."""
    if snapshot.tokenizer is None:
        raise ValueError("a GGUF's metadata needs the checkpoint's tokenizer")
    return [
        *_general(target, snapshot),
        *_weighed(target, snapshot),
        *gguf_config.encode(arch.find(snapshot.config), snapshot.config),
        *gguf_vocab.encode(snapshot.tokenizer, snapshot.config, snapshot.generation_config, target.pre),
        KeyValue("quantkit.version", version.__version__, "STRING"),
        KeyValue("quantkit.recipe.digest", digest, "STRING"),
        KeyValue("quantkit.source.digest", source_digest(snapshot), "STRING"),
    ]


def _title(snapshot: Snapshot) -> str:
    """The model's own name, else its architecture and size; never a folder's name, for bytes do not depend on that."""
    return snapshot.name or f"{snapshot.config['model_type']} {naming.size_label(snapshot.parameters())}"


def _general(target: GgufTarget, snapshot: Snapshot) -> list[KeyValue]:
    licence = snapshot.licence
    label = naming.size_label(snapshot.parameters())
    texts = {
        "general.type": "model",
        "general.name": _title(snapshot),
        "general.size_label": label,
        "general.license": licence.id,
        "general.license.name": licence.name,
        "general.license.link": licence.link,
        "general.source.repo_url": _repository(snapshot),
    }
    return [KeyValue(key, text, "STRING") for key, text in texts.items() if text] + [
        KeyValue("general.file_type", mixture.FILE_TYPE[base_type(target)], "UINT32"),
        KeyValue("general.quantization_version", QUANTIZATION_VERSION, "UINT32"),
    ]


def _weighed(target: GgufTarget, snapshot: Snapshot) -> list[KeyValue]:
    """Which importance matrix weighed the errors, as llama-quantize says it."""
    if not target.imatrix:
        return []
    name = imatrix_file(snapshot) if target.imatrix is True else Path(str(target.imatrix)).name
    return [KeyValue("quantize.imatrix.file", name, "STRING")]


def _repository(snapshot: Snapshot) -> str | None:
    if snapshot.repo is None:
        return None
    return f"hf://{snapshot.repo}" + (f"@{snapshot.commit}" if snapshot.commit else "")


def source_digest(snapshot: Snapshot) -> str:
    """One sha256 for all weight files: of their digests, sorted; never of their names, for bytes do not depend on those."""
    if not snapshot.digests:
        return UNKNOWN_DIGEST
    return hashlib.sha256("".join(f"{digest}\n" for digest in sorted(snapshot.digests.values())).encode()).hexdigest()
