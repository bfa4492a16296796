"""The document that comes out: what was made, from what, how well it does, and what it needs."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

SCHEMA_VERSION = 1

Verdict = Literal["pass", "fail", "unresolved", "unchecked"]
Number = float | int | str


def within(name: str) -> str:
    """The name of a file inside a folder, as it is. Raises ValueError for one that could lead out of it."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise ValueError(f"{name!r} is no name of a file within a folder")
    return name


def _one(name: str) -> str:
    if "/" in name:
        raise ValueError(f"{name!r} is no name of one file")
    return within(name)


Within = Annotated[str, AfterValidator(within)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecipeRecord(_Frozen):
    name: Annotated[str, AfterValidator(_one)]
    digest: str  # sha256 of the resolved values that determine the bytes
    text: str  # as typed
    lock: str | None = None  # what it was locked to, JSON


class SourceRecord(_Frozen):
    uri: str
    kind: str
    name: str
    repo: str | None
    commit: str | None
    architecture: str
    parameters: int
    digests: dict[str, str]
    licence: str | None
    licence_name: str | None
    licence_link: str | None
    licence_files: dict[Within, str] = {}  # name -> sha256 of the texts that must go with every copy
    context_length: int
    already_quantised: str | None  # e.g. "Q4_1" when the source itself is a quantised file


class MachineRecord(_Frozen):
    cpu: str
    cpu_class: str  # the class of CPU that the artefact bytes are promised for
    instruction_sets: list[str]
    cores: int
    memory_bytes: int
    platform: str
    python: str
    versions: dict[str, str]
    bandwidth: float | None = None  # of memory, bytes/s, where it was measured
    flops: float | None = None  # of float32 matrix products, operations/s, where it was measured


class TensorRecord(_Frozen):
    name: str
    source: str | None
    shape: list[int]
    source_dtype: str
    type: str
    wanted: str
    reason: str
    nbytes: int
    relative_error: float | None = None  # sqrt(sum (w - decoded)^2 / sum w^2), on the written file


class CheckRecord(_Frozen):
    check: str
    verdict: Literal["pass", "fail", "report", "unresolved"]
    summary: str
    values: dict[str, Number]
    limits: dict[str, float]
    engine: str
    chunk_means: dict[str, list[float]] = {}  # of each measure, chunk by chunk: what another artefact's are paired with
    seconds: float = 0.0  # what it took; where checks share a measurement, the first has it


class SpeedRecord(_Frozen):
    engine: str
    threads: int
    prompt_tokens: int
    decode_tokens: int
    load_seconds: float
    first_token_seconds: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None  # None: an encoder decodes nothing
    peak_rss_bytes: int


class MemoryRecord(_Frozen):
    """Predicted memory of the artefact in its engine at one context length, bytes; process: before it is loaded."""

    context: int
    weights: int
    kv_cache: int
    compute: int
    overhead: int
    process: int = 0
    total: int
    measured: int | None  # peak RSS of a child process at this context, where it was measured


class SampleRecord(_Frozen):
    """A greedy answer through the chat template, original beside artefact."""

    prompt: str
    original: str
    artefact: str


class FileRecord(_Frozen):
    name: Within
    nbytes: int
    sha256: str


class ImportanceRecord(_Frozen):
    """What calibration measured, and the imatrix file that holds it; rows are tokens that reached an expert's matrix."""

    file: FileRecord
    text: str
    tokens: int
    tensors: int
    experts: int  # matrices of experts, in all layers; 0 for a dense model
    unseen_experts: int
    fewest_rows: int | None


class TargetRecord(_Frozen):
    name: str
    format: str
    type: str
    codes: Literal["search", "gptq"] = "search"  # how they were chosen
    mark: str = ""  # what tells it from the run's others of its type
    files: list[FileRecord]  # several where it is split; the first is the one to open
    bits_per_weight: float
    seconds: float
    peak_rss_bytes: int
    verdict: Verdict
    tensors: list[TensorRecord]
    checks: list[CheckRecord]
    speed: SpeedRecord | None
    baseline: SpeedRecord | None  # the unquantised model in the same run, where the whole of it was timed
    baseline_label: str | None
    memory: list[MemoryRecord]
    samples: list[SampleRecord]

    @property
    def title(self) -> str:
        """Its type, and what tells it from others of the same."""
        return f"{self.type} {self.mark}".rstrip()

    @property
    def file(self) -> str:
        return self.files[0].name

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def sha256(self) -> str:
        """Of the file to open."""
        return self.files[0].sha256


class PeerRecord(_Frozen):
    """Another maker's file of a target's type, made of the same weights with the same importance, measured in the same run by
    the same protocol, and deleted. targets: whose counterpart it is."""

    maker: str
    type: str
    mark: str = ""  # static: without importance, where another of its type has some
    targets: list[str]
    nbytes: int
    bits_per_weight: float
    seconds: float  # of quantising the unquantised file
    peak_rss_bytes: int
    checks: list[CheckRecord]

    @property
    def title(self) -> str:
        return f"{self.maker} {self.type} {self.mark}".rstrip()


class StageRecord(_Frozen):
    """A stage of the run; what an earlier run had finished takes no time in it."""

    name: str
    seconds: float
    peak_rss_bytes: int


class CostRecord(_Frozen):
    """What the run took. disk_bytes: the most that the build folder held, artefacts included."""

    stages: list[StageRecord]
    seconds: float
    peak_rss_bytes: int
    disk_bytes: int


class Manifest(_Frozen):
    schema_version: int = SCHEMA_VERSION
    quantkit: str
    created: str  # UTC, ISO 8601
    recipe: RecipeRecord
    source: SourceRecord
    machine: MachineRecord
    text: dict[str, str]  # name -> sha256 of the evaluation text
    calibration: dict[str, str] = {}  # name -> sha256 of its texts
    targets: list[TargetRecord]
    peers: list[PeerRecord] = []
    importance: ImportanceRecord | None = None
    cost: CostRecord | None = None
    published: list[str] = []

    @property
    def files(self) -> list[FileRecord]:
        """Every file that was made, documents apart."""
        own = [self.importance.file] if self.importance else []
        return [file for target in self.targets for file in target.files] + own

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all targets."""
        order: tuple[Verdict, ...] = ("fail", "unresolved", "unchecked", "pass")
        return min((target.verdict for target in self.targets), key=order.index, default="unchecked")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
