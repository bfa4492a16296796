"""What goes with published files: the model card, SHA256SUMS. Pure functions to text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

import yaml

from quantkit import footprint
from quantkit.manifest import Manifest
from quantkit.report import figures as fig
from quantkit.report import layers, peers
from quantkit.report.markdown import code, fenced, plain, table


def card(manifest: Manifest) -> str:
    """README.md: front matter that the Hub reads, then what a person needs. Text from outside is escaped."""
    source = manifest.source
    parts = [
        front_matter(manifest),
        f"# {plain(source.name)}, quantised",
        f"{fig.MARKS[manifest.verdict]} {fig.verdict_sentence(manifest)} {_measured(manifest)}",
        *_notes(manifest),
        "## Results",
        results(manifest),
        *_section("Others' files of the same types", _beside(manifest)),
        "## Can I run it?",
        machines(manifest),
        "## How to run",
        _how_to_run(manifest),
        *_section("Checks", checks(manifest)),
        *_section("Memory", _memory(manifest)),
        *_section("Errors by kind of tensor", _errors(manifest)),
        *_section("Answers", _answers(manifest)),
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
    notes = [f"Licence: {plain(fig.licence_sentence(source))}"]
    if source.already_quantised:
        notes.append(
            f"> The source is itself quantised ({plain(source.already_quantised)}). What is called original here is "
            "what its weights decode to, not the model as it was trained."
        )
    return notes


def results(manifest: Manifest) -> str:
    """Sizes, quality, speed and verdict of every artefact, as a table with what the figures are against."""
    rows, columns = [], (*fig.quality(manifest), *fig.second_opinion(manifest))
    for target in manifest.targets:
        f = fig.figures(target)
        rows.append(
            (
                code(target.file),
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
    note = f"± is one standard error, clustered by chunk. Engines: {plain(', '.join(engines) or 'none')}."
    if baselines:
        note += f" × is against {plain('; or '.join(baselines))} in the same run, on {plain(manifest.machine.cpu)}."
    if fig.second_opinion(manifest):
        note += " Cloze is the share of right answers to which of four words follows, less the original's."
    return f"{table(heads, rows)}\n\n{note}"


def _beside(manifest: Manifest) -> str:
    """What peers make of the same types, measured in the same run."""
    columns = fig.quality(manifest)
    rows = [
        (
            plain(each.peer.title),
            fig.size(each.peer.nbytes),
            fig.number(each.peer.bits_per_weight, 2),
            *(column.cell(each.figures) for column in columns),
            ", ".join(f"{plain(target.title)} {fig.times(ratio)}" for target, ratio in each.ratios),
        )
        for each in peers.beside(manifest)
    ]
    if not rows:
        return ""
    heads = ("File", "Size", "Bits per weight", *(c.head for c in columns), "KLD, ours over its")
    note = "Made of the same weights with the same importance, measured in this run as ours are, and deleted."
    return f"{table(heads, rows)}\n\n{note}"


def machines(manifest: Manifest) -> str:
    """The largest context of every artefact by machine."""
    rows = []
    for target in manifest.targets:
        contexts = fig.fits(target).values() if target.memory else ()
        cells = ["no" if context is None else f"{context:,}" for context in contexts] or ["–"] * len(footprint.MACHINES)
        rows.append((target.title, *cells))
    drawn = table(("Artefact", *(f"{machine} GB" for machine in footprint.MACHINES)), rows)
    reserve = footprint.OS_RESERVE / footprint.GiB
    most = [
        f"{plain(type)} {fig.rate(tokens)}"
        for type, tokens in next((found for _, found in reversed(fig.ceilings(manifest))), [])
    ]
    width = manifest.machine.bandwidth or fig.DESKTOP
    ceilings = f" Memory of {width / 1e9:.0f} GB/s sets a ceiling to decoding, tokens/s: {', '.join(most)}." if most else ""
    return f"{drawn}\n\nThe largest context in tokens beside {reserve:g} GiB left to the system, without a GPU.{ceilings}"


def checks(manifest: Manifest) -> str:
    """What every check of every artefact found; empty where none ran."""
    rows = [
        (plain(target.title), check.check, f"{fig.MARKS[check.verdict]} {check.verdict}", plain(check.summary))
        for target in manifest.targets
        for check in target.checks
    ]
    return table(("Artefact", "Check", "Verdict", "Found"), rows) if rows else ""


def _section(head: str, text: str) -> tuple[str, ...]:
    return (f"## {head}", text) if text else ()


def _memory(manifest: Manifest) -> str:
    rows = [
        (
            plain(target.title),
            f"{point.context:,}",
            fig.memory(point.predicted),
            "–" if point.measured is None else fig.memory(point.measured),
            "–" if point.error is None else fig.signed_percent(point.error),
        )
        for target in manifest.targets
        for point in fig.memory_points(target)
    ]
    return table(("Artefact", "Context", "Predicted", "Measured", "Error"), rows) if rows else ""


def _errors(manifest: Manifest) -> str:
    rows = [
        (plain(target.title), code(role.role), f"{role.mean:.4f}", f"{role.greatest:.4f} in block {role.block}")
        for target in manifest.targets
        for role in layers.roles(layers.errors(target))
    ]
    if not rows:
        return ""
    note = "√(Σ(w − decoded)² / Σw²) of each tensor, on the written file, over the blocks; `report.json` has every block."
    return f"{table(('Artefact', 'Tensors', 'Mean', 'Greatest'), rows)}\n\n{note}"


def _answers(manifest: Manifest) -> str:
    """Greedy answers beside each other; nothing of a prompt or an answer is Markdown here."""
    blocks = []
    for group in fig.answers(manifest):
        given = [("original", group.original), *group.artefacts]
        rows = [(plain(who), plain(answer)) for who, answer in given]
        blocks.append(f"{plain(group.prompt)}\n\n{table(('From', 'Answer'), rows)}")
    return "\n\n".join(blocks)


def _how_to_run(manifest: Manifest) -> str:
    best = next((target for target in manifest.targets if target.verdict == "pass"), manifest.targets[0])
    file = best.file
    if best.format == "onnx":
        commands: tuple[str, ...] = (
            f"onnxruntime.InferenceSession({file!r})",
            f"onnxruntime_genai.Model({file.partition('/')[0]!r})    # a decoder with genai_config.json",
        )
        return fenced("\n".join(commands), "python")
    if best.format == "gptq":
        folder = shlex.quote(file.rpartition("/")[0])
        commands = (
            f"transformers chat {folder}     # with optimum and gptqmodel installed",
            f"vllm serve {folder}            # a server, OpenAI-compatible; not run here",
        )
        return fenced("\n".join(commands), "sh")
    name = re.sub(r"[^a-z0-9._-]+", "-", manifest.source.name.lower()).strip("-._") or "model"
    commands = (
        f"llama-cli -m {shlex.quote(file)}        # a chat in the terminal",
        f"llama-server -m {shlex.quote(file)}     # a server, OpenAI-compatible",
        "",
        f"ollama create {name} -f Modelfile && ollama run {name}     # not run here",
    )
    return fenced("\n".join(commands), "sh")


def _measured(manifest: Manifest) -> str:
    if not manifest.text:
        return (
            "Nothing was measured on these files; `report.html` says what they hold and what memory they are predicted to take."
        )
    return "The results were measured on these files in the engines named below them; `report.html` has the rest."


def _limits(manifest: Manifest) -> str:
    said = [
        f"Checked on {plain(name)} (sha256 {code(digest)}): a perplexity ratio holds for text like it."
        for name, digest in manifest.text.items()
    ] or ["Not checked: nothing is known of their quality."]
    if any(target.speed for target in manifest.targets):
        said.append(
            f"Speed and memory are those of {plain(manifest.machine.cpu)} ({manifest.machine.cores} cores, "
            f"{fig.memory(manifest.machine.memory_bytes)})."
        )
    said += [
        f"{target.title}: {len(fallback.tensors)} tensors are {fallback.type}, not {fallback.wanted} "
        f"({plain(fallback.reason)})."
        for target in manifest.targets
        for fallback in fig.fallbacks(target)
    ]
    return "\n".join(f"- {line}" for line in said)


def _provenance(manifest: Manifest) -> str:
    source = manifest.source
    rows = [
        ("Source", code(source.uri)),
        ("Commit", code(source.commit) if source.commit else "none: the source is not a repository"),
        *((f"Source sha256, {plain(name)}", code(digest)) for name, digest in source.digests.items()),
        *((f"sha256, {plain(file.name)}", code(file.sha256)) for target in manifest.targets for file in target.files),
        ("Made by", f"quantkit {manifest.quantkit}, {fig.moment(manifest.created)}"),
        ("Bytes promised for", plain(manifest.machine.cpu_class)),
        ("Recipe digest", code(manifest.recipe.digest)),
    ]
    return f"{table(('What', 'Which'), rows)}\n\nThe recipe, as typed:\n\n{fenced(manifest.recipe.text, 'yaml')}"
