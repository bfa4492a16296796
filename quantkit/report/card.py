"""What goes with published files: the model card, SHA256SUMS. Pure functions to text."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Mapping, Sequence

import yaml

from quantkit import footprint
from quantkit.manifest import Manifest
from quantkit.report import figures as fig


def card(manifest: Manifest) -> str:
    """README.md: front matter that the Hub reads, then what a person needs. Text from outside is escaped."""
    source = manifest.source
    parts = [
        front_matter(manifest),
        f"# {_text(source.name)}, quantised",
        f"{fig.MARKS[manifest.verdict]} {fig.verdict_sentence(manifest)} {_measured(manifest)}",
        *_notes(manifest),
        "## Results",
        _results(manifest),
        "## Can I run it?",
        _machines(manifest),
        "## How to run",
        _how_to_run(manifest),
        "## Limits",
        _limits(manifest),
        "## Where it comes from",
        _provenance(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(manifest: Manifest) -> str:
    """The card's YAML. `license` is the source's, left out when it names none, as is an unknown base model."""
    source = manifest.source
    fields: dict[str, object] = {}
    if source.repo:
        fields |= {"base_model": source.repo, "base_model_relation": "quantized"}
    if source.licence:
        fields["license"] = source.licence
        if source.licence_name:
            fields["license_name"] = source.licence_name
        if source.licence_link:
            fields["license_link"] = source.licence_link
    fields |= {"library_name": "gguf", "pipeline_tag": "text-generation"}
    fields["tags"] = ["gguf", "llama.cpp", "quantized", source.architecture]
    lines = {key: " ".join(value.split()) if isinstance(value, str) else value for key, value in fields.items()}
    return f"---\n{yaml.safe_dump(lines, sort_keys=False, allow_unicode=True, width=10_000)}---"


def sha256sums(digests: Mapping[str, str]) -> str:
    """File name -> sha256, as `sha256sum --check` reads them."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def _notes(manifest: Manifest) -> list[str]:
    source = manifest.source
    notes = [f"Licence: {_text(fig.licence_sentence(source))}"]
    if source.already_quantised:
        notes.append(
            f"> The source is itself quantised ({_text(source.already_quantised)}). What is called original here is "
            "what its weights decode to, not the model as it was trained."
        )
    return notes


def _results(manifest: Manifest) -> str:
    rows, columns = [], fig.quality(manifest)
    for target in manifest.targets:
        f = fig.figures(target)
        rows.append(
            (
                _code(target.file),
                fig.size(target.nbytes),
                fig.number(target.bits_per_weight, 2),
                *(column.cell(f) for column in columns),
                f"{fig.rate(f.prefill)} ({fig.times(f.prefill_ratio)})",
                f"{fig.rate(f.decode)} ({fig.times(f.decode_ratio)})",
                "–" if f.peak_rss is None else fig.memory(f.peak_rss),
                f"{fig.MARKS[target.verdict]} {target.verdict}",
            )
        )
    heads = (
        "File", "Size", "Bits per weight", *(f"{c.head}, {c.unit}" if c.unit else c.head for c in columns), "Prefill, tokens/s",
        "Decode, tokens/s", "Peak memory", "Verdict",
    )  # fmt: skip
    baselines = sorted({target.baseline_label for target in manifest.targets if target.baseline_label})
    engines = sorted({check.engine for target in manifest.targets for check in target.checks})
    note = f"± is one standard error, clustered by chunk. Engines: {_text(', '.join(engines) or 'none')}."
    if baselines:
        note += f" × is against {_text(', '.join(baselines))} in the same run, on {_text(manifest.machine.cpu)}."
    return f"{_table(heads, rows)}\n\n{note}"


def _machines(manifest: Manifest) -> str:
    rows = []
    for target in manifest.targets:
        contexts = fig.fits(target).values() if target.memory else ()
        cells = ["no" if context is None else f"{context:,}" for context in contexts] or ["–"] * len(footprint.MACHINES)
        rows.append((target.type, *cells))
    table = _table(("Artefact", *(f"{machine} GB" for machine in footprint.MACHINES)), rows)
    reserve = footprint.OS_RESERVE / footprint.GiB
    return f"{table}\n\nThe largest context in tokens beside {reserve:g} GiB left to the system, without a GPU."


def _how_to_run(manifest: Manifest) -> str:
    best = next((target for target in manifest.targets if target.verdict == "pass"), manifest.targets[0])
    file = best.file
    if best.format == "onnx":
        commands: tuple[str, ...] = (
            f"onnxruntime.InferenceSession({file!r})",
            f"onnxruntime_genai.Model({file.partition('/')[0]!r})    # a decoder with genai_config.json",
        )
        return _fenced("\n".join(commands), "python")
    if best.format == "gptq":
        folder = shlex.quote(file.rpartition("/")[0])
        commands = (
            f"transformers chat {folder}     # with optimum and gptqmodel installed",
            f"vllm serve {folder}            # a server, OpenAI-compatible; not run here",
        )
        return _fenced("\n".join(commands), "sh")
    name = re.sub(r"[^a-z0-9._-]+", "-", manifest.source.name.lower()).strip("-._") or "model"
    commands = (
        f"llama-cli -m {shlex.quote(file)}        # a chat in the terminal",
        f"llama-server -m {shlex.quote(file)}     # a server, OpenAI-compatible",
        "",
        f"ollama create {name} -f Modelfile && ollama run {name}     # not run here",
    )
    return _fenced("\n".join(commands), "sh")


def _measured(manifest: Manifest) -> str:
    if not manifest.text:
        return (
            "Nothing was measured on these files; `report.html` says what they hold and what memory they are predicted to take."
        )
    return "The results were measured on these files in the engines named below them; `report.html` has the rest."


def _limits(manifest: Manifest) -> str:
    said = [
        f"Checked on {_text(name)} (sha256 {_code(digest)}): a perplexity ratio holds for text like it."
        for name, digest in manifest.text.items()
    ] or ["Not checked: nothing is known of their quality."]
    if any(target.speed for target in manifest.targets):
        said.append(
            f"Speed and memory are those of {_text(manifest.machine.cpu)} ({manifest.machine.cores} cores, "
            f"{fig.memory(manifest.machine.memory_bytes)})."
        )
    said += [
        f"{target.type}: {len(fallback.tensors)} tensors are {fallback.type}, not {fallback.wanted} ({_text(fallback.reason)})."
        for target in manifest.targets
        for fallback in fig.fallbacks(target)
    ]
    return "\n".join(f"- {line}" for line in said)


def _provenance(manifest: Manifest) -> str:
    source = manifest.source
    rows = [
        ("Source", _code(source.uri)),
        ("Commit", _code(source.commit) if source.commit else "none: the source is not a repository"),
        *((f"Source sha256, {_text(name)}", _code(digest)) for name, digest in source.digests.items()),
        *((f"sha256, {_text(file.name)}", _code(file.sha256)) for target in manifest.targets for file in target.files),
        ("Made by", f"quantkit {manifest.quantkit}, {fig.moment(manifest.created)}"),
        ("Bytes promised for", _text(manifest.machine.cpu_class)),
        ("Recipe digest", _code(manifest.recipe.digest)),
    ]
    return f"{_table(('What', 'Which'), rows)}\n\nThe recipe, as typed:\n\n{_fenced(manifest.recipe.text, 'yaml')}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _text(text: str) -> str:
    """Text from outside, on one line, with nothing that Markdown or HTML would act on."""
    return re.sub(r"([\\`*_\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _code(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
