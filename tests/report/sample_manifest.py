"""A synthetic manifest for the tests of the report: every figure in it is made up."""

from __future__ import annotations

import math

from quantkit import footprint
from quantkit.manifest import (
    CheckRecord,
    CostRecord,
    FileRecord,
    MachineRecord,
    Manifest,
    MemoryRecord,
    PeerRecord,
    RecipeRecord,
    SampleRecord,
    SourceRecord,
    SpeedRecord,
    StageRecord,
    TargetRecord,
    TensorRecord,
)

HOSTILE = "<script>alert('x')</script>"
ENGINE = "llama.cpp (llama-cpp-python 0.0.0)"

CONFIG = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}

RECIPE = f"""# recipes/sample.yaml {HOSTILE}
source: package://sample/Sample-135M-Instruct.Q4_1.gguf
targets:
  - {{format: gguf, type: Q4_K_M}}
  - {{format: gguf, type: Q2_K}}
checks:
  perplexity: {{text: builtin:python-docs, chunks: 16, max_ratio: 1.05}}
  divergence: {{max_mean: 0.05}}
  latency: {{min_decode_ratio: 1.5}}
publish:
  - folder: artefacts/sample
"""

_KINDS = {
    "attn_q": (576, 576),
    "attn_k": (192, 576),
    "attn_v": (192, 576),
    "attn_output": (576, 576),
    "ffn_gate": (1536, 576),
    "ffn_up": (1536, 576),
    "ffn_down": (576, 1536),
}


def _tensor(name: str, shape: tuple[int, ...], wanted: str, error: float) -> TensorRecord:
    fits = shape[-1] % 256 == 0 or wanted == "Q8_0"
    type = wanted if fits else "Q5_0"
    reason = f"{wanted}: the mixture's rule" if fits else f"rows of {shape[-1]} are no multiple of 256: {wanted} -> Q5_0"
    return TensorRecord(
        name=name,
        source=name,
        shape=list(shape),
        source_dtype="Q4_1",
        type=type,
        wanted=wanted,
        reason=reason,
        nbytes=math.prod(shape) * 11 // 16,
        relative_error=error,
    )


def tensors(wanted: str, error: float) -> list[TensorRecord]:
    blocks = [
        _tensor(f"blk.{n}.{kind}.weight", shape, wanted, error * (1 + 0.4 * math.sin(n / 4 + len(kind))))
        for n in range(30)
        for kind, shape in _KINDS.items()
    ]
    return [_tensor("token_embd.weight", (49152, 576), "Q8_0", error / 9), *blocks]


def speed(prefill: float, decode: float, peak: int) -> SpeedRecord:
    return SpeedRecord(
        engine=ENGINE,
        threads=2,
        prompt_tokens=512,
        decode_tokens=64,
        load_seconds=0.31,
        first_token_seconds=512 / prefill,
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
        peak_rss_bytes=peak,
    )


def checks(ratio: float, kld: float, top: float, decode: float, good: bool) -> list[CheckRecord]:
    verdict = "pass" if good else "fail"
    return [
        CheckRecord(
            check="integrity",
            verdict="pass",
            summary="211 tensors as planned, all finite",
            engine="gguf-py 0.0.0",
            limits={},
            values={
                "tensors": 211,
                "faults": 0,
                "worst_tensor": "blk.29.ffn_down.weight",
                "worst_relative_error": 0.071,
            },
        ),
        CheckRecord(
            check="perplexity",
            verdict=verdict,
            engine=ENGINE,
            limits={"max_ratio": 1.05},
            summary=f"perplexity {18.2 * ratio:.4f}, original 18.2000: ratio {ratio:.4f} ± 0.0031, limit 1.05",
            values={
                "perplexity": 18.2 * ratio,
                "perplexity_error": 0.61,
                "reference_perplexity": 18.2,
                "reference_perplexity_error": 0.6,
                "ratio": ratio,
                "ratio_error": 0.0031,
                "chunks": 16,
                "tokens": 4096,
            },
        ),
        CheckRecord(
            check="divergence",
            verdict=verdict,
            engine=ENGINE,
            limits={"max_mean": 0.05},
            summary=f"mean KL divergence {kld:.4f} ± {kld / 12:.4f}, same top-1 {top:.1%}",
            values={
                "mean_kld": kld,
                "mean_kld_error": kld / 12,
                "max_kld": kld * 90,
                "kld_p99": kld * 11,
                "same_top": top,
                "same_top_error": 0.004,
                "chunks": 16,
                "tokens": 4096,
            },
        ),
        CheckRecord(
            check="latency",
            verdict="report",
            engine=ENGINE,
            limits={"min_decode_ratio": 1.5},
            summary=f"decode {decode:.2f}x of the unquantised F16",
            values={
                "decode_ratio": decode,
                "decode_ratio_min": decode * 0.94,
                "decode_ratio_max": decode * 1.08,
                "prefill_ratio": decode * 0.7,
                "prefill_ratio_min": decode * 0.66,
                "prefill_ratio_max": decode * 0.72,
                "rounds": 3,
                "threads": 2,
            },
        ),
    ]


def target(type: str, nbytes: int, ratio: float, kld: float, top: float, factor: float, good: bool) -> TargetRecord:
    rows = tensors(type.removesuffix("_M"), kld)
    predicted = footprint.memory(nbytes, [], CONFIG, [512, 1024, 2048, 4096, 8192])
    return TargetRecord(
        name=f"gguf-{type}",
        format="gguf",
        type=type,
        files=[
            FileRecord(
                name=f"Sample-135M-Instruct-with-a-name-that-goes-on-{type}.gguf", nbytes=nbytes, sha256="0123456789abcdef" * 4
            )
        ],
        bits_per_weight=nbytes * 8 / 134_515_008,
        seconds=4.2,
        peak_rss_bytes=412 << 20,
        verdict="pass" if good else "fail",
        tensors=rows,
        checks=checks(ratio, kld, top, factor, good),
        speed=speed(1210 * factor * 0.7, 54 * factor, 219 << 20),
        baseline=speed(1210, 54, 381 << 20),
        baseline_label="F16 of the same source",
        memory=[
            MemoryRecord(
                context=m.context,
                weights=m.weights,
                kv_cache=m.kv_cache,
                compute=m.compute,
                overhead=m.overhead,
                process=m.process,
                total=m.total,
                measured=int(m.total * 1.013) if m.context in (512, 2048) else None,
            )
            for m in predicted
        ],
        samples=[
            SampleRecord(
                prompt=f"What is a prime number? {HOSTILE}",
                original="A prime number is a whole number greater than 1 that has no divisors but 1 and itself.",
                artefact="A prime number is a whole number greater than 1 whose only divisors are 1 and itself.",
            ),
            SampleRecord(prompt="Name three rivers.", original="The Nile,\nthe Rhine,\nthe Danube.", artefact="The Nile."),
        ],
    )


def sample(*, licence: str | None = "apache-2.0", name: str = "Sample 135M Instruct", link: str | None = None) -> Manifest:
    """Two GGUF targets; Q4_K_M passes, Q2_K fails. The recipe, a prompt and a machine's name are hostile."""
    return Manifest(
        quantkit="0.0.0",
        created="2026-01-01T00:00:00Z",
        recipe=RecipeRecord(name="sample", digest="ab" * 32, text=RECIPE),
        source=SourceRecord(
            uri="package://sample/Sample-135M-Instruct.Q4_1.gguf",
            kind="gguf",
            name=name,
            repo="example/Sample-135M-Instruct",
            commit=None,
            architecture="llama",
            parameters=134_515_008,
            digests={"Sample-135M-Instruct.Q4_1.gguf": "cd" * 32},
            licence=licence,
            licence_name=None,
            licence_link=link,
            context_length=8192,
            already_quantised="Q4_1",
        ),
        machine=MachineRecord(
            cpu=f"Sample CPU @ 2.0GHz {HOSTILE}",
            cpu_class="x86-64-v4",
            instruction_sets=["AVX2", "AVX512F", "AVX512-VNNI"],
            cores=2,
            memory_bytes=24 << 30,
            platform="Linux-x86_64",
            python="3.11.0",
            bandwidth=45.7e9,
            flops=120e9,
            versions={"numpy": "0.0.0", "llama-cpp-python": "0.0.0"},
        ),
        text={"builtin:python-docs": "ef" * 32},
        cost=CostRecord(
            stages=[
                StageRecord(name="write", seconds=3.1, peak_rss_bytes=310 << 20),
                StageRecord(name="check", seconds=90.0, peak_rss_bytes=1600 << 20),
            ],
            seconds=93.1,
            peak_rss_bytes=1600 << 20,
            disk_bytes=300_000_000,
        ),
        targets=[
            target("Q4_K_M", 105_454_144, 1.0182, 0.0164, 0.947, 1.86, good=True),
            target("Q2_K", 67_300_000, 1.3127, 0.2871, 0.781, 1.93, good=False),
        ],
    )


def several() -> Manifest:
    """Four targets, one with a cloze check, one a GPTQ checkpoint, whose baseline is its own."""
    manifest = sample()
    small, worst = manifest.targets
    cloze = CheckRecord(
        check="cloze", verdict="report", summary="right 78.0 %, original 79.2 % of 1024 questions", limits={}, engine=ENGINE,
        values={"accuracy": 0.78, "reference_accuracy": 0.792, "difference": -0.012, "difference_error": 0.004},
    )  # fmt: skip
    fine = target("Q8_0", 144_811_136, 1.004, 0.0031, 0.965, 1.4, good=True)
    solved = target("w4g64", 120_000_000, 1.09, 0.11, 0.85, 1.2, good=False)
    names = {"blk.": "model.layers.", "attn_q": "self_attn.q_proj", "ffn_down": "mlp.experts.3.down_proj"}
    tensors = []
    for tensor in solved.tensors:
        name = tensor.name
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        tensors.append(tensor.model_copy(update={"name": name}))
    engine = {"engine": "transformers 0.0.0"}
    changes = {
        "name": "gptq-w4g64",
        "format": "gptq",
        "verdict": "unresolved",
        "files": [solved.files[0].model_copy(update={"name": "gptq-w4g64/model.safetensors"})],
        "tensors": tensors,
        "speed": speed(900, 60, 900 << 20).model_copy(update=engine),
        "baseline": speed(800, 50, 1200 << 20).model_copy(update=engine),
        "baseline_label": "the source, in transformers",
        "samples": [],
    }
    with_cloze = fine.model_copy(update={"checks": [*fine.checks, cloze]})
    return manifest.model_copy(update={"targets": [small, with_cloze, worst, solved.model_copy(update=changes)]})


def coded() -> Manifest:
    """Q4_K_M and Q2_K, each by the search and by GPTQ's engine, and llama.cpp's own files of both."""
    manifest = sample()
    searched, targets = manifest.targets, []
    for each in searched:
        targets += [each, each.model_copy(update={"name": f"{each.name}-gptq", "codes": "gptq", "mark": "gptq"})]
    half = checks(1.01, 0.01, 0.95, 1.9, good=True)
    targets[1] = targets[1].model_copy(update={"checks": half})
    peers = [
        PeerRecord(
            maker="llama.cpp", type=each.type, targets=[each.name, f"{each.name}-gptq"], nbytes=each.nbytes, seconds=9.5,
            bits_per_weight=each.bits_per_weight, peak_rss_bytes=600 << 20, checks=checks(1.1, kld, 0.9, 1.0, good=True)[1:3],
        )
        for each, kld in zip(searched, (0.04, 0.5), strict=True)
    ]  # fmt: skip
    return manifest.model_copy(update={"targets": targets, "peers": peers})
