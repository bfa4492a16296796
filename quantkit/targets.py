"""The artefacts that a recipe can ask for: a target of each format, with its keys."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from quantkit.frozen import Frozen

GgufType = Literal[
    "auto", "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS",
    "Q4_1", "Q4_0", "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "Q2_K_S", "TQ2_0", "TQ1_0",
]  # fmt: skip
GGUF_TYPES: tuple[str, ...] = get_args(GgufType)[1:]
"""llama.cpp's file types."""

TensorType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0", "MXFP4", "Q3_K",
    "Q2_K", "TQ2_0", "TQ1_0",
]  # fmt: skip

CheckName = Literal["perplexity", "divergence", "cloze", "embedding", "latency"]


GptqBits = Literal[2, 3, 4, 8]
GptqGroup = Literal[-1, 32, 64, 128]


class TokenizerOverride(Frozen):
    """What a checkpoint does not say of its tokenizer, or says wrongly."""

    pre: str = Field(min_length=1, description="llama.cpp's name of the pre-tokenizer, e.g. llama-bpe")


class TypeRule(Frozen):
    """A type for the tensors whose GGUF name matches: blk.*.ffn_down, token_embd, blk.[0-3].attn_?.weight."""

    match: str = Field(min_length=1, description="shell-style pattern of a GGUF tensor's name, with or without .weight")
    type: TensorType


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]i?)?B?")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "ki": 1 << 10, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def _bytes(value: Any) -> Any:
    """A size as people write it: 4GB, 95 MB, 1.5GiB, or a number of bytes."""
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{value!r} is no size: write 4GB, 95MB, 1.5GiB or a number of bytes")
    return int(float(found[1]) * _UNITS[found[2] or ""])


OnnxBits = Literal[4, 8]
OnnxScheme = Literal["blocks", "dynamic"]
_SITES = ("transformers.js", "sentence-transformers")
OnnxBlock = Literal[16, 32, 64, 128, 256]

Size = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=int | str), Field(gt=0)]


class GgufTarget(Frozen):
    """A GGUF file of one of llama.cpp's file types, or of an exact size with types chosen by measured error."""

    format: Literal["gguf"]
    type: GgufType
    size: Size | None = Field(None, description="with type: auto, the size of the file: 95MB; never more, within 1 % of it")
    bits_per_weight: float | None = Field(None, gt=1, le=32, description="with type: auto, instead of a size")
    imatrix: bool | str = Field(
        False, description="weight the errors by activations: true for the calibration text's, or an imatrix file's path"
    )
    codes: Literal["search", "gptq"] = Field(
        "search",
        description="gptq: scales and codes of the layers' matrices and the head by GPTQ's engine, on the calibration text; "
        "imatrix then weighs the others alone",
    )
    quality: Literal["standard", "high"] = Field("standard", description="of codes: gptq, as of a target gptq")
    rules: tuple[TypeRule, ...] = Field((), description="types for tensors by name; the first match counts")
    output: TensorType | None = Field(None, description="type of the output head, or of the embedding that serves as it")
    token_embd: TensorType | None = Field(None, description="type of the token embedding")
    pure: bool = Field(False, description="no mixture: the file type's default for every tensor")
    split: Size | None = Field(None, description="write parts of at most this size: 4GB")
    tokenizer: TokenizerOverride | None = None
    checks: dict[CheckName, Literal["report"]] = Field(
        default_factory=dict, description="checks that only report for this target"
    )

    @model_validator(mode="after")
    def _keys_fit_the_type(self) -> GgufTarget:
        aims = [key for key in ("size", "bits_per_weight") if getattr(self, key) is not None]
        if self.type == "auto" and len(aims) != 1:
            raise ValueError("type: auto needs one of size: 95MB and bits_per_weight: 4.5")
        if self.type != "auto" and aims:
            raise ValueError(f"{aims[0]} belongs to type: auto; {self.type} has the size that it has")
        if self.type == "auto" and self.pure:
            raise ValueError("pure: true means one type for all tensors, type: auto chooses one for each; leave one out")
        if self.type == "Q2_K_S" and not self.weighed:
            raise ValueError(
                "Q2_K_S is made with importance weights only: codes: gptq, imatrix: true, or the path of an imatrix file"
            )
        return self

    @property
    def pre(self) -> str | None:
        return self.tokenizer.pre if self.tokenizer else None

    @property
    def label(self) -> str:
        """What the file's name says of its type; with rules of its own it is llama.cpp's type with a note."""
        if self.size:
            return f"AUTO_{self.size // 10**6}MB" if self.size % 10**6 == 0 else f"AUTO_{self.size}B"
        if self.bits_per_weight:
            return f"AUTO_{self.bits_per_weight:g}BPW".replace(".", "_")  # downloaders end a type's name at a dot
        return self.type

    @property
    def name(self) -> str:
        return f"gguf-{self.label}" + ("-gptq" if self.codes == "gptq" else "") + ("-imatrix" if self.imatrix else "")

    def budget(self, weights: int) -> int | None:
        """Most bytes that the file of a model of so many weights may have; None where the type decides."""
        return int(self.bits_per_weight * weights / 8) if self.bits_per_weight else self.size

    @property
    def calibrated(self) -> bool:
        """Whether its importance or its codes come from the recipe's calibration."""
        return self.imatrix is True or self.codes == "gptq"

    @property
    def weighed(self) -> bool:
        """Whether errors are weighed by activations."""
        return bool(self.imatrix) or self.codes == "gptq"

    @property
    def solver(self) -> GptqTarget:
        """The settings of GPTQ's engine, which chooses each type's own scales and codes."""
        return GptqTarget(format="gptq", quality=self.quality)


def mark(target: GgufTarget, others: Iterable[GgufTarget]) -> str:
    """What tells a target from the others of its type: "gptq" its codes, "static" that no importance weighed them, or both;
    empty for the one that needs no word. It stands in the file's name, and static is what the Hub calls such files."""
    alike = [each for each in others if each.label == target.label]
    coded = target.codes == "gptq" and any(each.codes != "gptq" for each in alike)
    static = not target.imatrix and any(each.imatrix for each in alike if each.codes == target.codes)
    return "-".join([*(["gptq"] if coded else []), *(["static"] if static else [])])


def has_peer(target: Target) -> bool:
    """Whether llama.cpp has a quantised file of the same type."""
    return target.format == "gguf" and target.type not in ("auto", "F32", "F16", "BF16")


class GptqRule(Frozen):
    """Other settings for the matrices whose name in the checkpoint matches: model.layers.*.mlp.down_proj."""

    match: str = Field(min_length=1, description="shell-style pattern of a matrix's name, with or without .weight")
    bits: GptqBits | None = None
    group: GptqGroup | None = None
    skip: bool = Field(False, description="leave them as they are")

    @model_validator(mode="after")
    def _says_something(self) -> GptqRule:
        if self.skip == (self.bits is not None or self.group is not None):
            raise ValueError("give bits, group or both, or skip: true alone")
        return self


class GptqTarget(Frozen):
    """A folder that transformers, gptqmodel and vLLM load: the decoder layers' matrices as GPTQ codes."""

    format: Literal["gptq"]
    bits: GptqBits = 4
    group: GptqGroup = Field(128, description="columns that share a scale; -1: whole rows")
    sym: bool = Field(
        True, description="false: zeros of their own, closer and in version 2 of the layout, which fewer engines read"
    )
    lm_head: bool = Field(False, description="quantise the output head too, where it is not the embedding")
    rules: tuple[GptqRule, ...] = Field((), description="other settings by name; the first match counts")
    layout: Literal["gptq", "compressed-tensors"] = "gptq"
    version: Literal[1, 2] | None = Field(None, description="of GPTQ's layout; 1 for symmetric codes, else 2")
    quality: Literal["standard", "high"] = Field(
        "standard", description="high: makes up for the error of the layers before; twice the time"
    )
    damp: float = Field(0.01, gt=0, le=1, description="of H's mean diagonal, added to it")
    activations: Literal["float32", "bfloat16"] = Field("float32", description="of what waits in the walk: half the memory")
    checks: dict[CheckName, Literal["report"]] = Field(
        default_factory=dict, description="checks that only report for this target"
    )

    @model_validator(mode="after")
    def _layout_holds_it(self) -> GptqTarget:
        if not self.sym and self.version == 1:
            raise ValueError(
                "version: 1 stores each zero less one, and a zero of 0 breaks its neighbours: sym: true, or version: 2"
            )
        if self.layout == "compressed-tensors" and (self.version or any(b == 3 for b in self._all_bits())):
            raise ValueError("layout: compressed-tensors has no version and no codes of 3 bits; use layout: gptq")
        return self

    def _all_bits(self) -> tuple[int | None, ...]:
        return (self.bits, *(rule.bits for rule in self.rules))

    @property
    def label(self) -> str:
        group = f"G{self.group}" if self.group > 0 else ""
        return f"W{self.bits}{group}" + ("" if self.sym else "-asym")

    @property
    def name(self) -> str:
        high = "-high" if self.quality == "high" else ""
        return f"{self.layout}-{self.label.lower()}{high}"

    @property
    def calibrated(self) -> bool:
        return True

    @property
    def stored_version(self) -> int:
        return self.version or (1 if self.sym else 2)


class OnnxRule(Frozen):
    """Other settings for the matrices whose name, in the checkpoint or in the graph, matches: model.layers.*.mlp.down_proj."""

    match: str = Field(min_length=1, description="shell-style pattern of a matrix's name, with or without .weight")
    bits: OnnxBits | None = None
    block: OnnxBlock | None = None
    scheme: OnnxScheme | None = None
    skip: bool = Field(False, description="leave them in float32")

    @model_validator(mode="after")
    def _says_something(self) -> OnnxRule:
        if self.skip == any(each is not None for each in (self.bits, self.block, self.scheme)):
            raise ValueError("give bits, block, scheme or some of them, or skip: true alone")
        return self


class OnnxTarget(Frozen):
    """A folder that onnxruntime runs, and of a decoder onnxruntime-genai: matrices and embeddings of 8 or 4 bits."""

    format: Literal["onnx"]
    bits: OnnxBits = 8
    scheme: OnnxScheme | Literal["fast-prefill"] | None = Field(
        None,
        description="blocks: weights alone are quantised, a decoder's default; dynamic: activations too, as they come, "
        "an encoder's; fast-prefill: dynamic where calibration shows it to be harmless, blocks elsewhere",
    )
    block: OnnxBlock | None = Field(None, description="columns that share a scale; of a decoder 32 by default")
    sym: bool = Field(True, description="false: blocks have zeros of their own")
    imatrix: bool = Field(
        False, description="weight errors by the calibration text's activations; of dynamic matrices, even out their inputs"
    )
    codes: Literal["search", "gptq"] = Field(
        "search", description="gptq: codes of the layers' matrices by GPTQ's engine, on the calibration text"
    )
    quality: Literal["standard", "high"] = Field("standard", description="of codes: gptq, as of a target gptq")
    spare: float = Field(
        0,
        ge=0,
        le=4,
        description="where a gate of quality fails, the matrices that cost most stay in float32: 0.1 adds a tenth",
    )
    layout: Literal["genai", "plain", "transformers.js", "sentence-transformers"] = Field(
        "plain", description="where graphs lie in the folder and what they are called; a decoder's always suits genai"
    )
    rules: tuple[OnnxRule, ...] = Field((), description="other settings by name; the first match counts")
    checks: dict[CheckName, Literal["report"]] = Field(
        default_factory=dict, description="checks that only report for this target"
    )

    @property
    def label(self) -> str:
        block = f"B{self.block}" if self.block is not None else ""
        return f"INT{self.bits}{block}" + ("" if self.sym else "Z") + (f"-{self.scheme}" if self.scheme else "")

    @property
    def name(self) -> str:
        further = [self.label.lower(), *(["gptq"] if self.codes == "gptq" else []), *(["imatrix"] if self.imatrix else [])]
        return "-".join(["onnx", *further, *([self.layout.replace(".", "")] if self.layout in _SITES else [])])

    @property
    def calibrated(self) -> bool:
        return self.imatrix or self.codes == "gptq" or self.spare > 0

    @model_validator(mode="after")
    def _dynamic_is_of_8_bits(self) -> OnnxTarget:
        if self.scheme in ("dynamic", "fast-prefill") and (self.bits != 8 or self.codes == "gptq"):
            raise ValueError(f"scheme: {self.scheme} has weights of 8 bits whose codes are searched; use scheme: blocks")
        if self.scheme == "fast-prefill" and not self.imatrix:
            raise ValueError("scheme: fast-prefill is measured on the calibration text: imatrix: true")
        return self

    @property
    def solver(self) -> GptqTarget:
        """The settings of GPTQ's engine; each matrix's bits and block are its row's."""
        return GptqTarget(format="gptq", bits=self.bits, sym=self.sym, quality=self.quality)


Target = Annotated[GgufTarget | GptqTarget | OnnxTarget, Field(discriminator="format")]
