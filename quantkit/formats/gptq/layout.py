"""What a GPTQ checkpoint of a model will hold: its matrices with their settings, its files, its configuration.

Keys and tensors as gptqmodel 7, transformers 5 and vLLM read them: gptqmodel/quantization/config.py, transformers/utils/
quantization_config.py (GPTQConfig), vllm/model_executor/layers/quantization/gptq.py; for compressed-tensors its own
quantization/quant_config.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from quantkit import arch, checkpoint
from quantkit.errors import InputError, UnsupportedError
from quantkit.formats.gptq import shards
from quantkit.formats.gptq.shards import Tensor
from quantkit.planning import FilePlan, TargetPlan, bits_per_weight
from quantkit.targets import GptqTarget
from quantkit.values import FLOATS, Row, Snapshot, TensorInfo
from quantkit.version import __version__

HEAD = "lm_head.weight"
NO_WORDS = "no whole words"  # the reason for a matrix that stays as it is against the recipe
WIDTH = {"I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a matrix is quantised. group: columns, never -1."""

    bits: int
    group: int

    @property
    def type(self) -> str:
        return f"W{self.bits}G{self.group}"


def plan(target: GptqTarget, digest: str, snapshot: Snapshot, model: str) -> TargetPlan:
    """The plan of a checkpoint's folder, files within it as "<folder>/<file>".

    Raises UnsupportedError for what is no decoder, InputError for a group that does not divide a matrix's columns and for
    rules that match nothing.
    """
    architecture = arch.find(snapshot.config)
    if architecture.kind != "decoder":
        raise UnsupportedError(f"{target.name}: GPTQ checkpoints are of decoders, this is an {architecture.kind}; use gguf")
    checkpoint.verify(architecture, snapshot.config, snapshot.weights.infos)
    found = matrices(snapshot)
    _check_rules(target, found)
    rows = tuple(_row(target, info, found) for info in snapshot.weights.infos.values())
    folder = f"{re.sub(r'[^A-Za-z0-9.]+', '-', model.split('/')[-1]).strip('-.') or 'model'}-{target.name}"
    held = {row.name: tensors(target, row) for row in rows}
    files = tuple(
        FilePlan(f"{folder}/{shard.name}", tuple(row for row in rows if row.name in shard.rows), shard.nbytes)
        for shard in shards.arrange(held)
    )
    return TargetPlan(target, digest, files, bits_per_weight(rows))


def matrices(snapshot: Snapshot) -> dict[str, bool]:
    """The stored matrices of the decoder's layers that take an activation, which tables, norms and what routes to experts do
    not; and whether they are stored as (in, out), as GPT-2's are."""
    architecture = arch.find(snapshot.config)
    found = {}
    for name, piece in checkpoint.locate(architecture, snapshot.config, snapshot.weights.infos).items():
        template = arch.template_of(architecture, name)
        dims = architecture.tensors[template]
        if "{}" in template and len(dims) == 2 and dims[0] != "experts":
            found[piece.name] = template in architecture.transposed
    if fused := [name for name in found if len(snapshot.weights.infos[name].shape) != 2]:
        raise UnsupportedError(
            f"{fused[0]} holds all experts in one tensor: GPTQ checkpoints have one for each; save the model with them apart"
        )
    return found


def _settings(target: GptqTarget, info: TensorInfo, found: Mapping[str, bool]) -> tuple[Settings | None, str]:
    """The settings of a stored tensor, None for one that stays as it is; and the reason."""
    if info.name == HEAD and not target.lm_head:
        return None, "the output head stays as it is"
    if info.name != HEAD and info.name not in found:
        return None, "no matrix of a layer"
    out, width = reversed(info.shape) if found.get(info.name) else info.shape
    bits, group, why = target.bits, target.group, "the recipe's bits and group"
    rule = next((rule for rule in target.rules if _matches(rule.match, info.name)), None)
    if rule is not None:
        bits, group, why = rule.bits or bits, rule.group or group, f"rule {rule.match!r}"
        if rule.skip:
            return None, why
    size = width if group == -1 else group
    if width % size:
        fit = [str(each) for each in (32, 64, 128) if width % each == 0]
        raise InputError(
            f"{target.name}: group {group} does not divide the {width} columns of {info.name}; "
            f"these do: {', '.join([*fit, '-1 (whole rows)'])}"
        )
    whole = 96 if bits == 3 else 32
    if width * bits % whole or (out * bits % whole and target.layout == "gptq"):
        return None, f"{NO_WORDS}: {out} x {width} codes of {bits} bits"
    return Settings(bits, size), why


def _check_rules(target: GptqTarget, found: Mapping[str, bool]) -> None:
    names = [*found, HEAD]
    idle = [rule.match for rule in target.rules if not any(_matches(rule.match, name) for name in names)]
    if idle:
        raise InputError(f"{target.name}: rules that match no matrix: {', '.join(map(repr, idle))}; names are like {names[0]}")


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".weight"), pattern)


def _row(target: GptqTarget, info: TensorInfo, found: Mapping[str, bool]) -> Row:
    chosen, why = _settings(target, info, found)
    kind = chosen.type if chosen else info.dtype if info.dtype in FLOATS else "F16"
    wanted = f"W{target.bits}" if why.startswith(NO_WORDS) else kind
    shape = info.shape[::-1] if chosen and found.get(info.name) else info.shape
    row = Row(info.name, info.name, shape, info.dtype, kind, wanted, why, 0)
    return replace(row, nbytes=sum(tensor.nbytes for tensor in tensors(target, row)))


def of_type(kind: str) -> Settings | None:
    """The settings that a row's type names, None for a float type."""
    found = re.fullmatch(r"W(\d)G(\d+)", kind)
    return Settings(int(found[1]), int(found[2])) if found else None


def tensors(target: GptqTarget, row: Row) -> tuple[Tensor, ...]:
    """The tensors of the file that hold a row."""
    chosen, stem = of_type(row.type), row.name.removesuffix(".weight")
    if chosen is None:
        return (Tensor(row.name, row.type, row.shape, math.prod(row.shape) * WIDTH[row.type]),)
    out, width = row.shape
    groups, words = width // chosen.group, chosen.bits
    if target.layout == "gptq":
        parts = {
            "qweight": ("I32", (width * words // 32, out)),
            "qzeros": ("I32", (groups, out * words // 32)),
            "scales": ("F16", (groups, out)),
            "g_idx": ("I32", (width,)),
        }
    else:
        parts = {
            "weight_packed": ("I32", (out, width * words // 32)),
            "weight_scale": ("F16", (out, groups)),
            "weight_shape": ("I64", (2,)),
        }
        if not target.sym:
            parts["weight_zero_point"] = ("I32", (-(-out * words // 32), groups))
    return tuple(Tensor(f"{stem}.{part}", kind, shape, math.prod(shape) * WIDTH[kind]) for part, (kind, shape) in parts.items())


def quantization_config(plan: TargetPlan, target: GptqTarget, snapshot: Snapshot, sources: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of the quantisation. sources: what `meta` tells of how it was made."""
    kept = {name.removesuffix(".weight") for name in matrices(snapshot)}
    rows = [(row.name.removesuffix(".weight"), of_type(row.type)) for row in plan.rows if len(row.shape) == 2]
    left = [name for name, chosen in rows if chosen is None and name in kept]
    if target.layout == "compressed-tensors":
        whole = [] if any(name == "lm_head" and chosen for name, chosen in rows) else ["lm_head"]  # a tied one is a Linear too
        return _compressed(target, rows, [*left, *whole])
    usual = {(target.bits, target.group), *((target.bits, each.group) for _, each in rows if each and target.group == -1)}
    own = {name: each for name, each in rows if each and (each.bits, each.group) not in usual}
    dynamic: dict[str, Any] = {f"-:^{re.escape(name)}$": {} for name in left}
    dynamic |= {f"+:^{re.escape(name)}$": {"bits": each.bits, "group_size": each.group} for name, each in own.items()}
    form = "gptq" if target.stored_version == 1 else "gptq_v2"
    return {
        "bits": target.bits, "group_size": target.group, "sym": target.sym, "desc_act": False, "static_groups": True,
        "true_sequential": True, "lm_head": target.lm_head, "damp_percent": target.damp, "quant_method": "gptq",
        "checkpoint_format": form, "format": form, "pack_dtype": "int32", **({"dynamic": dynamic} if dynamic else {}),
        "meta": {"quantizer": [f"quantkit:{__version__}"], **sources},
    }  # fmt: skip


def _compressed(target: GptqTarget, rows: list[tuple[str, Settings | None]], left: list[str]) -> dict[str, Any]:
    kinds: dict[Settings, list[str]] = {}
    for name, chosen in rows:
        if chosen is not None:
            kinds.setdefault(chosen, []).append(name)
    most = max(kinds, key=lambda each: len(kinds[each]), default=None)
    groups = {}
    for index, (each, names) in enumerate(sorted(kinds.items(), key=lambda item: item[0] == most)):
        weights = {
            "num_bits": each.bits, "type": "int", "symmetric": target.sym, "strategy": "group", "group_size": each.group,
            "dynamic": False, "actorder": None,
        }  # fmt: skip
        groups[f"group_{index}"] = {
            "targets": ["Linear"] if each == most else names, "weights": weights, "input_activations": None,
            "output_activations": None, "format": "pack-quantized",
        }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": groups, "ignore": left, "kv_cache_scheme": None, "global_compression_ratio": None,
    }  # fmt: skip
