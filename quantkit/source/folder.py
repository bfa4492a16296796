"""A folder as transformers saves it: safetensors (single or sharded), pickled .bin, or config.json alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import arch, checkpoint, skeleton
from quantkit.errors import SourceError, UnsupportedError
from quantkit.source import card, pooling, schemes, vocabulary
from quantkit.source.documents import inside, parse, read_json, read_text, refuse_stray
from quantkit.source.files import DeclaredTensors, Span, TensorFiles
from quantkit.source.quantised import QuantisedTensors
from quantkit.source.schemes import Presented
from quantkit.values import F32, U8, Snapshot, TensorInfo, Tokenizer, Weights

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_HEADER = 100_000_000  # bytes of a safetensors header, the format's own limit
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def _f32(raw: U8) -> F32:
    return raw.view("<f4")


def _f16(raw: U8) -> F32:
    return raw.view("<f2").astype(np.float32)


def _bf16(raw: U8) -> F32:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


_DTYPES = {"F32": (4, _f32), "F16": (2, _f16), "BF16": (2, _bf16)}
_CODES = {"I64": 8, "I32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # bytes of what quantised checkpoints hold
_TORCH = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def describe(folder: Path, uri: str, remote: Weights | None = None) -> Snapshot:
    """The checkpoint in `folder`, from its headers, or with the weights of `remote` while they lie elsewhere.

    Raises SourceError, WeightError, UnsupportedError.
    """
    config = read_json(folder / "config.json")
    _refuse_adapter(folder)
    if config is None:
        inside = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f"; it holds {', '.join(inside)}: name the file itself" if inside else ""
        raise SourceError(f"{folder.name} is not a checkpoint: it has no config.json{hint}")
    architecture = arch.find(config)
    weights = remote or _weights(folder, config)
    checkpoint.verify(architecture, config, weights.infos)
    matter, generation = card.front_matter(folder), read_json(folder / "generation_config.json") or {}
    return Snapshot(
        uri=uri,
        kind="folder",
        name=matter.get("model_name") or None,
        repo=None,
        commit=None,
        config=_completed(config, folder, generation),
        generation_config=generation,
        weights=weights,
        tokenizer=_tokenizer(folder),
        licence=card.licence(matter, folder),
        reconstructed=isinstance(weights, DeclaredTensors),
    )


def _completed(config: Mapping[str, Any], folder: Path, generation: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json with what other files say of the graph: an encoder's pooling, the token that a decoder begins with."""
    kind = arch.find(config).kind
    if kind == "encoder" and (how := pooling.read(folder)) is not None:
        return {**config, "pooling": how}
    start = generation.get("decoder_start_token_id")
    if kind == "encoder-decoder" and config.get("decoder_start_token_id") is None and start is not None:
        return {**config, "decoder_start_token_id": start}
    return config


def _refuse_adapter(folder: Path) -> None:
    """Raise UnsupportedError for a LoRA adapter without a model of its own: it changes weights that lie elsewhere."""
    adapter = read_json(folder / "adapter_config.json")
    if adapter is None or any((folder / name).is_file() for name in (SINGLE, INDEX, *PICKLED)):
        return
    base = adapter.get("base_model_name_or_path") or "its base model"
    raise UnsupportedError(
        f"{folder.name} is a LoRA adapter: it holds changes to {base}, not a model. Merge it first (peft: "
        "AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(merged)) and give the result"
    )


def shards_of(index: Mapping[str, Any], name: str) -> dict[str, str]:
    """An index's map: tensor name -> file. Raises SourceError for an index without one, and for a file that does not lie in
    its folder; `name` is the index's own."""
    placed = index.get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
        raise SourceError(f"{name} has no weight_map from tensors to files; fetch it again")
    for file in placed.values():
        inside(file, name)
    return placed


def _tokenizer(folder: Path) -> Tokenizer | None:
    """tokenizer.json, or what older tokenizers have instead, with its settings; the chat template by llama.cpp's precedence:
    config, .jinja, .json. Truncation and padding belong to training, and are left out.
    """
    marks = read_json(folder / "special_tokens_map.json") or {}
    config = marks | (read_json(folder / "tokenizer_config.json") or {})
    definition = read_json(folder / "tokenizer.json")
    if definition is None:
        older = vocabulary.read(folder, config, read_json(folder / "added_tokens.json") or {})
        if older is None:
            return None
        definition, config = dict(older.definition), dict(older.config)
    definition |= {"truncation": None, "padding": None}
    template = config.get("chat_template") or _template_files(folder)
    listed = isinstance(template, list) and all(isinstance(item, dict) for item in template)
    named = {item.get("name"): item.get("template") for item in template} if listed else {}
    chosen = named.get("default") if named else template
    if not isinstance(chosen, str | None):
        raise SourceError(f"tokenizer_config.json: chat_template is a {type(chosen).__name__}, not a text; fetch it again")
    return Tokenizer(definition, {**config, "chat_template": template} if named else config, chosen)


def _template_files(folder: Path) -> Any:
    path = folder / "chat_template.jinja"
    if not path.is_file():
        return (read_json(folder / "chat_template.json") or {}).get("chat_template")
    refuse_stray(folder / "additional_chat_templates")
    further = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if not further:
        return read_text(path)
    found = [("default", path), *((other.stem, other) for other in further)]
    return [{"name": name, "template": read_text(file)} for name, file in found]


def _weights(folder: Path, config: Mapping[str, Any]) -> Weights:
    index = read_json(folder / INDEX)
    if (folder / SINGLE).is_file():
        return _safetensors(folder, [SINGLE], config)
    if index is not None:
        placed = shards_of(index, INDEX)
        shards = sorted(set(placed.values()))
        if absent := [name for name in shards if not (folder / name).is_file()]:
            raise SourceError(f"{INDEX} names shards that are not there: {', '.join(absent)}; fetch them again")
        return _safetensors(folder, shards, config, placed)
    if strays := sorted(path.name for path in folder.glob("*.safetensors")):
        raise SourceError(f"neither {SINGLE} nor {INDEX} is there, though {strays[0]} is; fetch the index again")
    if any((folder / name).is_file() for name in PICKLED):
        from quantkit.source import pickled

        return pickled.load(folder, config)
    return DeclaredTensors(
        reconstruct(config), "the folder holds config.json and no weights; its tensors were reconstructed for planning"
    )


def _safetensors(
    folder: Path, shards: list[str], config: Mapping[str, Any], placed: Mapping[str, str] | None = None
) -> Weights:
    infos: dict[str, TensorInfo] = {}
    spans: dict[str, Span] = {}
    faults: list[str] = []
    for shard in shards:
        path = folder / shard
        with path.open("rb") as file:
            start, header = read_header(file.read(8), file.read, path.stat().st_size, shard)
        for name, entry in header.items():
            if name in infos:
                faults.append(f"{name} is in {spans[name].path.name} and in {shard}")
            if placed is not None and placed.get(name) != shard:
                faults.append(f"{name} lies in {shard}, {INDEX} says {placed.get(name, 'nothing')}")
            infos[name], spans[name] = _entry(path, start, name, entry)
    for name, shard in (placed or {}).items():
        if name not in infos:
            faults.append(f"{name} is not in {shard}, where {INDEX} puts it")
    if faults:
        raise SourceError(f"{INDEX} and the shards disagree; fetch the checkpoint again:\n  " + "\n  ".join(faults))
    presented = select(config, infos)
    if presented.packed:
        return QuantisedTensors(TensorFiles(infos, spans), presented)
    return TensorFiles(presented.infos, {name: spans[name] for name in presented.infos})


def select(config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> Presented:
    """The tensors as they are without quantisation, and without those known to be redundant. Raises UnsupportedError for a
    stored type that cannot be read."""
    presented = schemes.present(config, infos)
    redundant = checkpoint.redundant(arch.find(config), config, presented.infos)
    kept = {name: info for name, info in presented.infos.items() if name not in redundant}
    odd = [
        f"{name} is {info.dtype}" for name, info in kept.items() if info.dtype not in _DTYPES and name not in presented.packed
    ]
    if odd:
        what = "and config.json says nothing of a quantisation" if "quantization_config" not in config else "without scales"
        known = ", ".join(_DTYPES)
        raise UnsupportedError(f"stored types other than {known} are not supported {what}: {'; '.join(odd[:5])}")
    return replace(presented, infos=kept)


def read_header(length: bytes, read: Any, size: int, shard: str) -> tuple[int, dict[str, Any]]:
    """A safetensors file's data offset and tensor entries, by its first 8 bytes and a reader of what follows.

    Raises SourceError if it is damaged, names a tensor twice, leaves a gap or an overlap, or differs from the file's size.
    """
    count = int.from_bytes(length, "little")
    if len(length) < 8 or count > size - 8:
        raise SourceError(f"{shard} is truncated: {size} bytes, its header alone wants {8 + count}; fetch it again")

    if count > MOST_HEADER:
        raise SourceError(
            f"{shard} declares a header of {count:,} bytes; safetensors has at most {MOST_HEADER:,}: fetch it again"
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise SourceError(f"{shard} names {next(key for key in keys if keys.count(key) > 1)} twice")
        return found

    header = parse(read(count), f"{shard}: the safetensors header", unique)
    if not isinstance(header, dict):
        raise SourceError(f"{shard}: the safetensors header is not a JSON object (a {type(header).__name__}); fetch it again")
    odd = [name for name, entry in header.items() if name != "__metadata__" and not _is_entry(entry)]
    if odd:
        raise SourceError(f"{shard}: the safetensors header describes {odd[0]} wrongly: {header[odd[0]]}; fetch it again")
    header.pop("__metadata__", None)
    at = 0
    for name, (begin, end) in sorted(
        ((name, entry["data_offsets"]) for name, entry in header.items()), key=lambda each: each[1]
    ):
        if begin != at or end < begin:
            raise SourceError(f"{shard}: {name} lies at bytes {begin} to {end}, where byte {at} is next; fetch it again")
        at = end
    wanted = 8 + count + at
    if wanted != size:
        state = "truncated" if size < wanted else "longer than its header says"
        raise SourceError(f"{shard} is {state}: {size} bytes, the header says {wanted}; fetch it again")
    return 8 + count, header


def _is_entry(entry: Any) -> bool:
    """Whether a header's entry says dtype, shape and place as the format has them."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, place = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(place, list) or len(place) != 2:
        return False
    return all(type(size) is int and size >= 0 for size in (*shape, *place))


def _entry(path: Path, start: int, name: str, entry: Mapping[str, Any]) -> tuple[TensorInfo, Span]:
    shape, (begin, end), dtype = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
    itemsize, decode = _DTYPES.get(dtype, (_CODES.get(dtype, 0), _f32))
    rows, width = (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (math.prod(shape), 1)
    if itemsize and rows * width * itemsize != end - begin:
        raise SourceError(f"{path.name}: {name} {dtype} {list(shape)} cannot fill {end - begin} bytes; fetch it again")
    info = TensorInfo(name, shape, dtype, end - begin)
    return info, Span(path, start + begin, rows, width * itemsize, width, decode)


def reconstruct(config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """The tensors that transformers' model of this config.json has, from the meta device; a tied head is left out."""
    import torch
    import transformers

    dtype = _TORCH.get(str(config.get("dtype") or config.get("torch_dtype")), "BF16")
    with torch.device("meta"):
        build = getattr(transformers, arch.AUTO_CLASS[arch.find(config).kind])
        plain = {key: value for key, value in skeleton.harmless(config).items() if key != "quantization_config"}
        model = build.from_config(transformers.AutoConfig.for_model(**plain))
    itemsize = _DTYPES[dtype][0]
    found = {
        name: TensorInfo(name, tuple(value.shape), dtype, value.numel() * itemsize) for name, value in model.named_parameters()
    }
    return dict(select({**config, "quantization_config": None}, found).infos)
