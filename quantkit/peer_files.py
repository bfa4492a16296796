"""llama.cpp's own files of a recipe's types: made of the unquantised model with the same importance, measured in the same
engine on the same text as ours, and deleted. A recipe asks for them with `checks: {peers: [llama.cpp]}`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from quantkit import baseline, making, quality, workspace
from quantkit.codecs import gguf_kv, imatrix
from quantkit.codecs.gguf import codecs
from quantkit.engines import llama_cpp_quantizer
from quantkit.engines.llama_cpp_quantizer import Wish
from quantkit.formats.gguf import layout, mixture
from quantkit.job import Job
from quantkit.manifest import CheckRecord, PeerRecord
from quantkit.planning import TargetPlan
from quantkit.quality import Evaluation
from quantkit.recipe import Checks
from quantkit.report import machine
from quantkit.targets import GgufTarget, has_peer
from quantkit.values import Importance
from quantkit.version import __version__

MAKER = "llama.cpp"


@dataclass(frozen=True, slots=True)
class Counterpart:
    """One file of llama.cpp's, and the targets that it is held against; rules by name are not said to it."""

    plans: tuple[TargetPlan, ...]
    mark: str

    @property
    def target(self) -> GgufTarget:
        return self.plans[0].gguf

    @property
    def title(self) -> str:
        return f"{MAKER} {self.target.type} {self.mark}".rstrip()

    @property
    def names(self) -> list[str]:
        return [plan.name for plan in self.plans]


def wanted(checks: Checks | None, plans: Sequence[TargetPlan]) -> tuple[Counterpart, ...]:
    """The files that a recipe's checks ask for: one for all targets that differ in codes alone."""
    if checks is None or MAKER not in checks.peers:
        return ()
    groups: dict[tuple[object, ...], list[TargetPlan]] = {}
    for plan in plans:
        if has_peer(plan.target):
            target = plan.gguf
            alike = (target.type, target.output, target.token_embd, target.pure, target.imatrix)
            groups.setdefault(alike, []).append(plan)
    weighed = {plan.gguf.type for group in groups.values() for plan in group if plan.gguf.weighed}
    return tuple(
        Counterpart(tuple(group), "static" if group[0].gguf.type in weighed and not group[0].gguf.imatrix else "")
        for group in groups.values()
    )


def measure(
    job: Job, plans: Sequence[TargetPlan], asked: Evaluation, observed: Mapping[str, Importance]
) -> tuple[PeerRecord, ...]:
    """What each of them does; records are kept in the build folder and found there again.

    Raises ResourceError where the unquantised file does not fit, UnresolvedError where llama.cpp quantises none of it.
    """
    found, base = [], None
    with ExitStack() as stack:
        for counterpart in wanted(job.recipe.checks, plans):
            weighed = making.importance_of(job, counterpart.target, observed)
            made_from = _key(job, counterpart, weighed, asked)
            path = job.work / f"peer-{made_from[:16]}.json"
            if workspace.recall(path, made_from) is None:
                base = base or stack.enter_context(baseline.whole(job))
                record = _measured(job.labelled(f"({counterpart.title})"), counterpart, base, weighed, asked)
                with workspace.replacing(path) as temporary:
                    temporary.write_text(record.model_dump_json(), encoding="utf-8")
                workspace.remember(path, made_from)
            record = PeerRecord.model_validate_json(path.read_text(encoding="utf-8"))
            found.append(record.model_copy(update={"targets": counterpart.names, "mark": counterpart.mark}))
    return tuple(found)


def _measured(
    job: Job, counterpart: Counterpart, base: Path, weighed: Mapping[str, Importance], asked: Evaluation
) -> PeerRecord:
    reference = quality.make_reference(job, asked)
    with workspace.temporary(job.work) as folder:
        given, out = folder / "importance.gguf", folder / "peer.gguf"
        if weighed:
            imatrix.write(given, weighed, datasets=[], chunks=1, chunk_size=quality.CHUNK)
        cost = llama_cpp_quantizer.make(
            base, out, _wish(counterpart.target), importance=given if weighed else None, threads=job.threads
        )
        checks = quality.check(job, out, reference, Checks())
        nbytes, header = out.stat().st_size, gguf_kv.read(out)
    weights = sum(math.prod(tensor.dimensions) for tensor in header.tensors)
    return PeerRecord(
        maker=MAKER,
        type=counterpart.target.type,
        mark=counterpart.mark,
        targets=counterpart.names,
        nbytes=nbytes,
        bits_per_weight=8 * (nbytes - header.data_offset) / weights,
        seconds=cost.seconds,
        peak_rss_bytes=cost.peak_rss_bytes,
        checks=[CheckRecord.model_validate(asdict(check)) for check in checks],
    )


def _wish(target: GgufTarget) -> Wish:
    output, token_embd = (codecs()[kind].ggml_type if kind else None for kind in (target.output, target.token_embd))
    return Wish(mixture.FILE_TYPE[target.type], output, token_embd, target.pure)


def _key(job: Job, counterpart: Counterpart, weighed: Mapping[str, Importance], asked: Evaluation) -> str:
    return workspace.key(
        wish=asdict(_wish(counterpart.target)),
        importance=making.digest_of(weighed),
        source=layout.source_digest(job.snapshot),
        config=job.snapshot.config,
        texts=[(each.text.sha256, len(each.given.tokens)) for each in (asked, asked.second) if each is not None],
        machine=machine.describe().model_dump(include={"cpu", "versions"}),
        threads=job.threads,
        quantkit=__version__,
    )
