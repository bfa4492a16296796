"""What a checkpoint is and where it would run, before anything of it is downloaded or made: from headers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from quantkit import footprint, requirements, source
from quantkit.codecs import gguf_config
from quantkit.errors import InputError, QuantkitError
from quantkit.formats.gguf import layout, naming
from quantkit.formats.gptq import layout as gptq_layout
from quantkit.formats.onnx import blocks, schemes
from quantkit.formats.onnx.blocks import Blocks
from quantkit.formats.onnx.dynamic import Dynamic
from quantkit.planning import TargetPlan
from quantkit.quality import kind
from quantkit.report import machine
from quantkit.source import licences
from quantkit.targets import GgufTarget, GptqTarget
from quantkit.values import Row, Snapshot

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q4_0", "Q3_K_M", "Q2_K")
MACHINES: Mapping[str, tuple[int, int]] = {"colab": (12 << 30, 2), "actions": (16 << 30, 4), "raspberrypi5": (8 << 30, 4)}
"""Machines that people ask about by name: bytes of memory, cores."""
_DIGEST = "0" * 64  # of no recipe, as long as one
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(g|gb|gib|m|mb|mib)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Form:
    """A type that the model could be made of. memory: context -> bytes in its engine. fits: GiB of a machine -> the largest
    of these contexts that runs on it, or None. here: that of the machine that was asked about."""

    format: str
    type: str
    nbytes: int
    exact: bool
    bits_per_weight: float
    memory: Mapping[int, int]
    fits: Mapping[int, int | None]
    here: int | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """memory: bytes of the machine that was asked about."""

    uri: str
    commit: str | None
    name: str
    architecture: str
    kind: str
    parameters: int
    dtypes: str
    licence: str | None
    redistribution: str
    gated: str | None
    downloads: int | None
    likes: int | None
    context: int
    download_bytes: int
    memory: int
    cores: int
    forms: tuple[Form, ...]
    refused: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def memory_of(text: str) -> int:
    """Bytes of "12GB", "1.5 GiB", "800M"; gigabytes of memory are of 1024. Raises InputError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InputError(f"--memory {text}: give gigabytes or megabytes, as 12GB or 1.5G")
    return int(float(found[1]) * (1 << (30 if found[2].lower().startswith("g") else 20)))


def inspect(uri: str, *, memory: int | None = None, named: str | None = None) -> Inspection:
    """Of a source as a recipe names it, for this machine, one of so many bytes of memory, or one of MACHINES.

    Raises InputError for an unknown machine, and the errors of source.describe.
    """
    if named is not None and named not in MACHINES:
        raise InputError(f"--machine {named}: known: {', '.join(MACHINES)}; or give --memory 12GB")
    held, cores = MACHINES[named] if named else (memory or machine.memory_bytes(), machine.cores())
    snapshot = source.describe(uri)
    said = _hub(snapshot)
    forms, refused = [], dict[str, str]()
    for format, type, make in _makers(snapshot):
        try:
            nbytes, exact, rows = make()
        except QuantkitError as error:
            refused[f"{format} {type}"] = str(error)
            continue
        forms.append(_form(snapshot, format, type, nbytes, exact, rows, held))
    dtypes = sorted({info.dtype for info in snapshot.weights.infos.values()})
    return Inspection(
        uri=snapshot.uri, commit=snapshot.commit, name=naming.model_name(snapshot).split("/")[-1],
        architecture=str(snapshot.config["model_type"]), kind=kind(snapshot), parameters=snapshot.parameters(),
        dtypes=", ".join(dtypes), licence=snapshot.licence.id, redistribution=licences.redistribution(snapshot.licence.id),
        gated=said.get("gated"), downloads=said.get("downloads"), likes=said.get("likes"),
        context=gguf_config.context_length(snapshot.config), download_bytes=snapshot.download_bytes, memory=held, cores=cores,
        forms=tuple(forms), refused=refused,
    )  # fmt: skip


def _hub(snapshot: Snapshot) -> Mapping[str, Any]:
    if snapshot.kind != "hub" or snapshot.repo is None or snapshot.commit is None:
        return {}
    from quantkit.source import hub

    return hub.standing(snapshot.repo, snapshot.commit)


Made = tuple[int, bool, tuple[Row, ...]]
"""Bytes of the files, whether that is exact, and their tensors."""


def _makers(snapshot: Snapshot) -> Iterator[tuple[str, str, Callable[[], Made]]]:
    """(format, type, what plans it)."""
    for type in TYPES:
        yield "gguf", type, partial(_gguf, snapshot, type)
    if kind(snapshot) == "decoder":
        widths = {info.shape[-1] for info in snapshot.weights.infos.values() if len(info.shape) == 2}
        group = next((size for size in (128, 64, 32) if all(width % size == 0 for width in widths)), -1)
        for bits in (8, 4):
            yield "gptq", f"W{bits}G{group}" if group > 0 else f"W{bits}", partial(_gptq, snapshot, bits, group)
    dynamic = kind(snapshot) != "decoder"
    for bits in (8,) if dynamic else (8, 4):
        yield "onnx", f"INT{bits}", partial(_onnx, snapshot, Dynamic() if dynamic else Blocks(bits, 32, True))


def _gguf(snapshot: Snapshot, type: str) -> Made:
    return _planned(layout.plan(GgufTarget(format="gguf", type=type), _DIGEST, snapshot, naming.model_name(snapshot)))


def _gptq(snapshot: Snapshot, bits: int, group: int) -> Made:
    target = GptqTarget(format="gptq", bits=bits, group=group)
    return _planned(gptq_layout.plan(target, _DIGEST, snapshot, naming.model_name(snapshot)))


def _planned(found: TargetPlan) -> Made:
    return found.nbytes or sum(row.nbytes for row in found.rows), found.nbytes is not None, found.rows


def _onnx(snapshot: Snapshot, scheme: Blocks | Dynamic) -> Made:
    """Without its graph, which takes long to make: matrices in the scheme where blocks divide them, the rest in float32."""
    rows = []
    for info in snapshot.weights.infos.values():
        held, type = 4 * math.prod(info.shape), "F32"
        if len(info.shape) == 2:
            size = blocks.fitting(info.shape[-1], scheme.block) if isinstance(scheme, Blocks) else 0
            chosen = Blocks(scheme.bits, size, True) if isinstance(scheme, Blocks) and size else scheme
            if size is not None:
                held, type = schemes.nbytes(chosen, *info.shape), chosen.type
        rows.append(Row(info.name, info.name, info.shape, info.dtype, type, type, "", held))
    return sum(row.nbytes for row in rows), False, tuple(rows)


def _form(snapshot: Snapshot, format: str, type: str, nbytes: int, exact: bool, rows: tuple[Row, ...], held: int) -> Form:
    memory = _memory(snapshot, format, nbytes, rows)
    room = held - footprint.OS_RESERVE
    return Form(
        format, type, nbytes, exact, 8 * nbytes / max(snapshot.parameters(), 1), memory, footprint.machine_classes(memory),
        max((context for context, total in memory.items() if total <= room), default=None),
    )  # fmt: skip


def _memory(snapshot: Snapshot, format: str, nbytes: int, rows: tuple[Row, ...]) -> dict[int, int]:
    """Context -> bytes, as `requirements` predicts them."""
    contexts = footprint.standard_contexts(gguf_config.context_length(snapshot.config))
    return {each.context: each.total for each in requirements.predict(format, nbytes, rows, snapshot, contexts)}
