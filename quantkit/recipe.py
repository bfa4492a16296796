"""What goes in: one source, the artefacts to make of it, the gates they pass, and where they go.

A recipe is read alone: no Python paths, no templating, no key that nothing reads. `digest` covers only the resolved values
that determine an artefact's bytes, so that a comment or another publish target changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from quantkit.destinations import Destination
from quantkit.frozen import Frozen
from quantkit.targets import Target, has_peer, mark

DEFAULT_TEXT = "builtin:python-docs"
SELF = "self"  # what the model itself says
DEFAULT_MIX = ({"text": DEFAULT_TEXT, "share": 0.5}, {"text": SELF, "share": 0.5})

C = TypeVar("C", bound=BaseModel)


class Perplexity(Frozen):
    """Perplexity over the second half of chunks of 512 tokens, as llama-perplexity counts it."""

    text: str = Field(
        DEFAULT_TEXT, description="builtin:python-docs, a file, or hf-dataset://org/name@rev/config/split?column=text"
    )
    chunks: int = Field(16, ge=2, le=4096, description="chunks of 512 tokens to score; more chunks, smaller errors")
    max_ratio: float | None = Field(None, gt=0, description="gate: perplexity of the artefact / that of the original")


class Divergence(Frozen):
    """Kullback-Leibler divergence of the artefact's next-token distribution from the original's, same text, same chunks."""

    max_mean: float | None = Field(None, gt=0, description="gate: mean divergence, nats per token")
    min_same_top: float | None = Field(None, gt=0, le=1, description="gate: share of tokens with the same most likely token")
    second: str | None = Field(None, description="another text, unlike the calibration's: reported, not gated")


class Cloze(Frozen):
    """Which of four tokens goes on with the perplexity's text, where a word begins: a second opinion, from the same logits."""

    min_ratio: float | None = Field(
        None, gt=0, le=1, description="gate: the artefact's share of right answers over the original's"
    )


class Embedding(Frozen):
    """An encoder's embeddings of the perplexity's text, in pieces of 128 tokens, against the original's."""

    min_cosine: float | None = Field(None, gt=0, le=1, description="gate: mean cosine with the original's embedding of a text")
    min_rank: float | None = Field(
        None, gt=0, le=1, description="gate: mean rank correlation (Spearman) of a text's likeness to all others"
    )


class Latency(Frozen):
    """Speed in the engine, always against the unquantised model in the same run."""

    min_decode_ratio: float | None = Field(None, gt=0, description="gate: decode tokens/s over the unquantised model's")
    min_prefill_ratio: float | None = Field(None, gt=0, description="gate: prefill tokens/s over the unquantised model's")
    rounds: int = Field(3, ge=1, le=50, description="child processes per model, interleaved; medians are reported")
    prompt: int = Field(256, ge=16, description="tokens of the prefill measurement")
    decode: int = Field(48, ge=8, description="tokens of the decode measurement")


class Memory(Frozen):
    """Resident memory of the artefact in its engine, measured in child processes beside what is predicted."""

    contexts: tuple[int, ...] = Field(
        (512, 2048, 8192),
        description="tokens to fill, as far as a minute each suffices; of a model that ends before, its limit, half of it, "
        "a quarter; [] measures none",
    )


def _or(word: str | bool) -> Callable[[dict[str, Any]], None]:
    """For the JSON Schema: what a validator accepts in place of a mapping."""

    def extend(schema: dict[str, Any]) -> None:
        given = schema.pop("anyOf", None) or [{"$ref": schema.pop("$ref")}]
        schema["anyOf"] = [*given, {"const": word}]

    return extend


Peer = Literal["llama.cpp"]


class Checks(Frozen):
    """What an artefact is held to; a limit is a key that begins with max_ or min_. `report` measures without a gate."""

    perplexity: Perplexity = Field(Perplexity(), json_schema_extra=_or("report"))
    divergence: Divergence = Field(Divergence(), json_schema_extra=_or("report"))
    cloze: Cloze = Field(Cloze(), json_schema_extra=_or("report"))
    embedding: Embedding = Field(Embedding(), json_schema_extra=_or("report"))
    latency: Latency = Field(Latency(), json_schema_extra=_or("report"))
    memory: Memory = Field(Memory(), json_schema_extra=_or("report"))
    peers: tuple[Peer, ...] = Field(
        (),
        description="[llama.cpp]: its own file of each GGUF target's type, with the same importance, is made, measured beside "
        "ours and deleted",
    )

    @model_validator(mode="before")
    @classmethod
    def _report_means_no_gate(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: {} if item == "report" else item for key, item in value.items()}


SANITY_CHECKS = Checks(
    perplexity=Perplexity(max_ratio=1.5), divergence=Divergence(max_mean=0.5), embedding=Embedding(min_cosine=0.9)
)
"""For a run without thresholds of its own: only a broken conversion fails these."""


class CalibrationText(Frozen):
    """One of several calibration texts and its share of the tokens."""

    text: str
    share: float = Field(gt=0, le=1)


class Calibration(Frozen):
    """The text whose activations say which weights matter."""

    text: str | tuple[CalibrationText, ...] = Field(
        DEFAULT_TEXT,
        description="a text; a list of {text: ..., share: 0.5}; or self: what the model says, sampled in llama.cpp as Q8_0. "
        "Where GPTQ's engine chooses codes, half builtin:python-docs and half self by default",
    )
    tokens: int = Field(32768, ge=512, description="in all; as many whole sequences as they hold")
    length: int = Field(512, ge=64, le=8192, description="of one sequence, tokens")
    seed: int = Field(0, ge=0, description="chooses the sequences among those of the text")

    @model_validator(mode="after")
    def _holds_a_sequence(self) -> Calibration:
        if self.tokens < self.length:
            raise ValueError(f"tokens: {self.tokens} hold no sequence of length: {self.length}; give more, or a shorter length")
        return self

    @model_validator(mode="after")
    def _shares_are_a_whole(self) -> Calibration:
        if isinstance(self.text, tuple):
            if not math.isclose(sum(part.share for part in self.text), 1, abs_tol=1e-3):
                raise ValueError(f"the shares add up to {sum(part.share for part in self.text):g}, not to 1")
            names = [part.text for part in self.text]
            if len(set(names)) < len(names):
                raise ValueError("the same text twice: give it one share")
            if empty := [uri for uri, count in self.counts() if count == 0]:
                raise ValueError(f"{', '.join(empty)} gets none of {self.sequences} sequences: give more tokens, or more share")
        return self

    @property
    def sequences(self) -> int:
        return self.tokens // self.length

    def counts(self) -> list[tuple[str, int]]:
        """Texts and how many sequences each gives: shares rounded so that their sum is whole."""
        if isinstance(self.text, str):
            return [(self.text, self.sequences)]
        ends, share = [0], 0.0
        for part in self.text:
            share += part.share
            ends.append(round(min(share, 1.0) * self.sequences))
        ends[-1] = self.sequences
        return [(part.text, end - begin) for part, begin, end in zip(self.text, ends, ends[1:], strict=False)]


class Recipe(Frozen):
    """One source, the artefacts to make of it, the gates they pass, and where they go."""

    source: str = Field(
        min_length=1, description="hf://org/name@revision, a folder, a .gguf file, file://..., package://module/file.gguf"
    )
    targets: tuple[Target, ...]
    calibration: Calibration | None = None
    checks: Checks | None = Field(
        SANITY_CHECKS, description="false: nothing is measured, and the manifest says so", json_schema_extra=_or(False)
    )
    publish: tuple[Destination, ...] = ()
    base_model: str | None = Field(
        None, pattern=r"^[\w.-]+/[\w.-]+$", description="for the model card, org/name, where the source does not say"
    )
    strict: bool = Field(False, description="a tensor that cannot have its wanted type is an error, not a row in the report")
    prompts: tuple[str, ...] = Field(
        ("What is the capital of France?", "Write a haiku about the sea.", "Explain in one sentence what a compiler does."),
        description="answered greedily by the original and by every artefact, side by side in the report",
    )

    @model_validator(mode="before")
    @classmethod
    def _codes_want_a_mix(cls, given: Any) -> Any:
        """Where GPTQ's engine chooses codes and no text is named: DEFAULT_MIX, which benchmarks/LOG.md has the reasons for."""
        if not isinstance(given, dict) or not isinstance(given.get("calibration"), dict):
            return given
        calibration, targets = given["calibration"], given.get("targets")
        engine = isinstance(targets, (list, tuple)) and any(
            isinstance(target, dict) and "gptq" in (target.get("format"), target.get("codes")) for target in targets
        )
        if "text" in calibration or not engine:
            return given
        mixed = {**calibration, "text": [dict(part) for part in DEFAULT_MIX]}
        try:
            Calibration.model_validate(mixed)
        except ValidationError:  # too few sequences to share, or faults that its own validation will name
            return given
        return {**given, "calibration": mixed}

    @field_validator("checks", mode="before")
    @classmethod
    def _false_means_none(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("empty: write false to measure nothing, or leave the key out for the sanity checks")
        return None if value is False else value

    @field_validator("targets")
    @classmethod
    def _targets_differ(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        if not targets:
            raise ValueError("a recipe makes at least one artefact: - {format: gguf, type: Q4_K_M}")
        names = [target.name for target in targets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the same target twice: {', '.join(twice)}; remove one, or make them by two recipes")
        return targets

    @model_validator(mode="after")
    def _calibration_is_used(self) -> Recipe:
        wanted = [target.name for target in self.targets if target.calibrated]
        if wanted and self.calibration is None:
            raise ValueError(f"{', '.join(wanted)} needs a calibration: {{text: ..., tokens: ...}}")
        if self.calibration is not None and not wanted:
            raise ValueError(
                "calibration is given and no target uses it; set imatrix: true on one, make a gptq target, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _peers_have_counterparts(self) -> Recipe:
        if self.checks is not None and self.checks.peers and not any(has_peer(target) for target in self.targets):
            raise ValueError(
                f"checks.peers: {', '.join(self.checks.peers)} makes GGUF files of stock quantised types, and no target is "
                "one; leave peers out, or add {format: gguf, type: Q4_K_M}"
            )
        return self

    def digest(self, target: Target) -> str:
        """sha256 of the values that determine this target's bytes, in canonical JSON."""
        values: dict[str, Any] = {"target": target.model_dump(exclude={"checks"})}
        if target.calibrated and self.calibration is not None:
            values["calibration"] = self.calibration.model_dump()
        return _sha256(values)

    def mark(self, target: Target) -> str:
        """What tells a GGUF target from this recipe's others of the same type; see targets.mark."""
        return mark(target, [each for each in self.targets if each.format == "gguf"]) if target.format == "gguf" else ""

    def whole_digest(self) -> str:
        """sha256 of every target's digest: the same for two recipes that make the same files of the same source."""
        return _sha256(sorted(self.digest(target) for target in self.targets))

    def texts(self) -> tuple[str, ...]:
        """The texts that a run reads: for calibration and for its checks."""
        given = tuple(uri for uri, _ in self.calibration.counts() if uri != SELF) if self.calibration else ()
        if self.checks is None:
            return given
        second = self.checks.divergence.second
        return (*given, self.checks.perplexity.text, *([second] if second else []))

    def gates(self, target: Target) -> Checks | None:
        """The recipe's checks with this target's overrides; None when checks are off."""
        if self.checks is None:
            return None
        return self.checks.model_copy(update={name: _ungated(getattr(self.checks, name)) for name in target.checks})


def _sha256(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _ungated(check: C) -> C:
    return check.model_copy(update={field: None for field in type(check).model_fields if field.startswith(("max_", "min_"))})


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors and `quantkit schema`."""
    return Recipe.model_json_schema()
