"""A GGUF file as a checkpoint: names and Q/K order undone, weights dequantised, config and tokenizer rebuilt."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import arch, checkpoint
from quantkit.arch import Architecture
from quantkit.codecs import gguf_config, gguf_kv, gguf_tensors, gguf_vocab
from quantkit.codecs.gguf import codecs
from quantkit.errors import SourceError, UnsupportedError
from quantkit.source import card
from quantkit.source.files import Span, TensorFiles
from quantkit.values import F32, U8, Licence, Snapshot, TensorInfo, Tokenizer

MOST_PARTS = 99_999  # five digits name them
_REPOSITORY = re.compile(r"(?:hf:/|https?://[^/]+)/([\w.-]+/[\w.-]+)")


def describe(path: Path, uri: str) -> Snapshot:
    """The checkpoint in a GGUF file, from its header. Raises SourceError, WeightError, UnsupportedError."""
    if not path.is_file():
        raise SourceError(f"no such file: {path}")
    parts = {part: gguf_kv.read(part) for part in _parts(path, gguf_kv.read(path).values())}
    kv = next(iter(parts.values())).values()
    name = gguf_kv.require(kv, "general.architecture")
    architecture = _architecture(name, kv)
    spans, infos = _all_tensors(parts)
    extra = {name: _whole(spans.pop(name)) for name in gguf_tensors.EXTRA if infos.pop(name, None)}
    config = gguf_config.decode(architecture, kv, extra)
    config["tie_word_embeddings"] = "output.weight" not in infos
    config |= _what_tensors_say(architecture, config, infos)
    weights = _weights(architecture, config, infos, spans)
    checkpoint.verify(architecture, config, weights.infos)
    return Snapshot(
        uri=uri,
        kind="gguf",
        name=kv.get("general.name") or kv.get("general.basename"),
        repo=_repo(kv),
        commit=None,
        config=config,
        generation_config=gguf_vocab.generation(kv),
        weights=weights,
        tokenizer=_tokenizer(kv),
        licence=_licence(kv, path.parent),
    )


def _architecture(name: str, kv: Mapping[str, Any]) -> Architecture:
    """As GGUF names it; of llamas whose width their heads do not divide Mistral, which computes the same: transformers' Llama
    takes no such heads."""
    found = arch.find_gguf(name, experts=bool(kv.get(f"{name}.expert_count")))
    width, heads = kv.get(f"{name}.embedding_length"), kv.get(f"{name}.attention.head_count")
    uneven = isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % heads != 0
    return arch.find({"model_type": "mistral"}) if uneven and found.model_type == "llama" else found


def _parts(path: Path, kv: Mapping[str, Any]) -> list[Path]:
    """All parts of a split file, the one with the metadata first. Raises SourceError for those that are not there."""
    count = kv.get("split.count", 0)
    if type(count) is not int or count > MOST_PARTS:
        raise SourceError(f"{path.name}: split.count = {count!r:.40}, at most {MOST_PARTS} parts can be; fetch it again")
    if count < 2:
        return [path]
    named = re.fullmatch(r"(.+)-\d{5}-of-\d{5}\.gguf", path.name)
    if named is None:
        raise SourceError(f"{path.name} is one of {count} parts and is not named like one: NAME-00001-of-{count:05}.gguf")
    parts = [path.with_name(f"{named[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    if absent := [part.name for part in parts if not part.is_file()]:
        raise SourceError(f"{path.name} is one of {count} parts; not there: {', '.join(absent)}; fetch them into its folder")
    return parts


def _all_tensors(parts: Mapping[Path, gguf_kv.Header]) -> tuple[dict[str, Span], dict[str, TensorInfo]]:
    """Spans and infos of all parts. Raises SourceError where they are not parts of one file, each in its place."""
    spans, infos = dict[str, Span](), dict[str, TensorInfo]()
    for number, (part, header) in enumerate(parts.items()):
        kv = header.values()
        if (kv.get("split.no", 0), kv.get("split.count", 1) or 1) != (number, len(parts)):
            said = f"part {kv.get('split.no', 0) + 1} of {kv.get('split.count', 1)}"
            raise SourceError(f"{part.name} says that it is {said}; fetch it again")
        found, described = _tensors(part, header)
        if twice := spans.keys() & found.keys():
            raise SourceError(f"{part.name} holds {min(twice)}, which another part holds too; fetch the parts again")
        spans |= found
        infos |= described
    wanted = next(iter(parts.values())).values().get("split.tensors.count", len(spans))
    if len(parts) > 1 and wanted != len(spans):
        raise SourceError(f"{next(iter(parts)).name}: its parts hold {len(spans)} tensors, {wanted} are said; fetch them again")
    return spans, infos


def _tokenizer(kv: Mapping[str, Any]) -> Tokenizer | None:
    return gguf_vocab.decode(kv) if kv.get("tokenizer.ggml.model", "no_vocab") != "no_vocab" else None


def _licence(kv: Mapping[str, Any], folder: Path) -> Licence:
    said = {f"license{part}": kv.get(f"general.license{part.replace('_', '.')}") for part in ("", "_name", "_link")}
    return card.licence(said, folder)


def _repo(kv: Mapping[str, Any]) -> str | None:
    """The Hub repository that the file says it was made from."""
    if repo := kv.get("general.source.huggingface.repository"):
        return str(repo)
    found = _REPOSITORY.match(str(kv.get("general.source.repo_url") or ""))
    return found[1] if found else None


def _tensors(path: Path, header: gguf_kv.Header) -> tuple[dict[str, Span], dict[str, TensorInfo]]:
    """Spans and infos under GGUF names. Raises SourceError if the file ends before a tensor does."""
    import gguf

    spans: dict[str, Span] = {}
    infos: dict[str, TensorInfo] = {}
    size, wanted = path.stat().st_size, header.data_offset
    for record in header.tensors:
        if record.ggml_type not in set(gguf.GGMLQuantizationType):
            raise UnsupportedError(f"{path.name}: {record.name} has the unknown type {record.ggml_type}")
        kind = gguf.GGMLQuantizationType(record.ggml_type)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        shape = tuple(reversed(record.dimensions))
        rows, width = (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (math.prod(shape), 1)
        if width % block:
            raise SourceError(f"{path.name}: {record.name} is {kind.name} with rows of {width}, no multiple of {block}")
        row_bytes = width // block * block_bytes
        offset = header.data_offset + record.offset
        spans[record.name] = Span(path, offset, rows, row_bytes, width, _decoder(kind))
        infos[record.name] = TensorInfo(record.name, shape, kind.name, rows * row_bytes)
        wanted = max(wanted, offset + rows * row_bytes)
    if size < wanted:
        raise SourceError(f"{path.name} is truncated: {size} bytes, its header says {wanted}; fetch it again")
    _refuse_overlap(path, spans)
    return spans, infos


def _refuse_overlap(path: Path, spans: Mapping[str, Span]) -> None:
    """Raise SourceError where a tensor begins before another one ends."""
    end, before = 0, ""
    for name, span in sorted(spans.items(), key=lambda each: (each[1].offset, each[1].rows * each[1].row_bytes)):
        if span.offset < end:
            raise SourceError(f"{path.name}: {name} begins at byte {span.offset}, where {before} has not ended; fetch it again")
        end, before = span.offset + span.rows * span.row_bytes, name


@cache
def _decoder(kind: Any) -> Callable[[U8], F32]:
    """Our own codec's decoder, or gguf-py's for the types that have none here. Raises UnsupportedError."""
    import gguf

    if kind.name in codecs():
        return codecs()[kind.name].decode
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError as error:
        raise UnsupportedError(f"tensor type {kind.name} cannot be dequantised: not supported as a source") from error
    return partial(gguf.quants.dequantize, qtype=kind)


def _what_tensors_say(architecture: Architecture, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Values of config.json that only the presence of a tensor tells; one whose name two templates share tells nothing, and
    neither does the absence of one that has a value of several."""
    names = {name: gguf_tensors.gguf_name(architecture, config, name, 0) for name in architecture.tensors}
    alone = {stored for stored, count in Counter(names.values()).items() if count == 1}
    return {
        architecture.keys.get(key, key): (names[template] in infos) == value if isinstance(value, bool) else value
        for template, (key, value) in architecture.when.items()
        if names[template] in alone and (isinstance(value, bool) or names[template] in infos)
    }


def _whole(span: Span) -> F32:
    """A small tensor's values, of which config.json needs to know."""
    files = TensorFiles({"": TensorInfo("", (span.rows,), "F32", span.rows * span.row_bytes)}, {"": span})
    found = files.read("")
    files.close()
    return found


def _weights(
    architecture: Architecture, config: Mapping[str, Any], infos: Mapping[str, TensorInfo], spans: Mapping[str, Span]
) -> TensorFiles:
    """The tensors under their Hugging Face names; a name that GGUF has and the architecture has not stays as it is."""
    shapes = arch.expected(architecture, config)
    declared = {name: TensorInfo(name, shape, "F32", 0) for name, shape in shapes.items()}
    placed = gguf_tensors.placements(architecture, config, declared)
    found: dict[str, tuple[TensorInfo, Span]] = {}
    for stored, placement in placed.items():
        if stored not in infos:
            continue
        span, rows = spans[stored], gguf_tensors.rows_of(placement)
        order = gguf_tensors.order(placement)
        for at, piece in enumerate(placement.pieces):
            shape, part = infos[stored].shape, span
            if len(placement.pieces) > 1:  # one of a stack
                shape = shape[1:]
                part = replace(span, offset=span.offset + at * rows * span.row_bytes, rows=rows)
            if placement.transposed:
                shape = shape[::-1]
            inverse = None if order is None else np.argsort(order)
            part = replace(part, order=inverse, transposed=placement.transposed, shift=-placement.shift)
            if len(shape) == 1 and part.width != 1:  # a vector out of a stack: F32, one row
                part = replace(part, rows=shape[0], row_bytes=part.row_bytes // shape[0], width=1)
            nbytes = infos[stored].nbytes // len(placement.pieces)
            found[piece.name] = TensorInfo(piece.name, shape, infos[stored].dtype, nbytes), part
    found |= {name: (info, spans[name]) for name, info in infos.items() if name not in placed}
    return TensorFiles({name: info for name, (info, _) in found.items()}, {name: span for name, (_, span) in found.items()})
