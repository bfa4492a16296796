"""The report page: what it says, what it escapes, and how a browser takes it."""

import re
from pathlib import Path

import pytest
from report.browser import CHROMIUM, Browser
from report.sample_manifest import HOSTILE, coded, sample, several

from quantkit.report.html import render


def test_the_verdict_and_the_machines_come_first() -> None:
    page = render(sample())
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads == ["Can I run it?", "Results", "Checks", "Answers", "Tensors", "Memory", "Provenance"]
    assert page.index("1 passed every gate, 1 failed") < page.index("Can I run it?")
    assert "Nothing was published" in page


def test_text_from_outside_is_escaped() -> None:
    page = render(sample(name=HOSTILE, link="javascript:alert(1)"))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert 'href="javascript' not in page


def test_labels_in_drawings_are_escaped() -> None:
    manifest = sample()
    bad = manifest.targets[0].model_copy(update={"type": HOSTILE, "baseline_label": HOSTILE})
    page = render(manifest.model_copy(update={"targets": [bad]}))
    assert "<script" not in page
    assert page.count("<svg") == page.count("</svg>")


def test_an_unknown_licence_is_said() -> None:
    assert "does not say under which licence" in render(sample(licence=None))
    assert "Inherited from the source: apache-2.0" in render(sample())


def test_an_unresolved_gate_published_nothing() -> None:
    manifest = sample()
    open_ = manifest.targets[0].model_copy(update={"verdict": "unresolved"})
    assert "Nothing was published" in render(manifest.model_copy(update={"targets": [open_]}))


def test_nothing_measured_still_renders() -> None:
    manifest = sample()
    bare = manifest.targets[0].model_copy(
        update={
            "checks": [],
            "speed": None,
            "baseline": None,
            "memory": [],
            "samples": [],
            "tensors": [],
            "verdict": "unchecked",
        }
    )
    page = render(manifest.model_copy(update={"targets": [bare]}))
    assert "No check ran on this artefact" in page
    assert "<svg" not in page.partition("</style>")[2]


def test_fallbacks_are_listed_with_their_reason() -> None:
    page = render(sample())
    assert "rows of 576 are no multiple of 256: Q4_K -&gt; Q5_0" in page
    assert "180 × Q5_0, 30 × Q4_K, 1 × Q8_0" in page


def test_the_recipe_is_there_as_typed() -> None:
    manifest = sample()
    assert manifest.recipe.text.splitlines()[-1] in render(manifest)


def test_plots_have_their_figures_in_words_beside_them() -> None:
    page = render(several())
    assert page.count("<svg") - page.count('aria-hidden="true"') == page.count('role="img"') == 8
    assert len(re.findall(r'<svg [^>]*role="img" aria-label="[^"]+"', page)) == 8
    assert page.count("The same as a table") == 4
    assert "llama.cpp, tools/perplexity/README.md: Llama 3 8B on wikitext-2" in page
    assert "Q4_K_M, published: 82.38 MB, mean KLD 0.0313" in page
    assert "mlp.experts.*.down_proj" in page
    assert page.count('tabindex="0" role="region" aria-label="') == page.count('class="wide"')


def test_each_artefact_stands_below_what_it_was_timed_against() -> None:
    page = render(several()).split("<h3>Prefill speed</h3>")[1].split("</figure>")[0]
    order = [page.index(f">{label}<") for label in ("F16 of the same source", "Q2_K", "the source, in transformers", "w4g64")]
    assert order == sorted(order)
    assert "900  (0.84×)" in page, "the ratio is the median of the rounds"


def test_what_the_machine_allows_and_what_it_took_are_said() -> None:
    page = render(sample())
    assert "On this machine, tokens/s" in page
    assert "120 GFLOP/s" in page
    assert "93 s, 1.56 GiB of memory at most" in page
    assert "On this machine, tokens/s" not in render(sample().model_copy(update={"targets": []}))


def test_a_second_opinion_has_a_column_where_it_was_asked() -> None:
    assert '<th class="n">Cloze</th>' in render(several())
    assert "Cloze" not in render(sample())


def test_codes_have_a_curve_each_and_so_have_peers() -> None:
    page = render(coded())
    plot = page.split("<h3>Size against divergence</h3>")[1].split("</figure>")[0]
    assert re.findall(r'<path class="e d\d" d="M\S+ \S+L\S+ \S+"><title>(.*?)</title>', plot) == [
        "codes: search", "codes: gptq", "llama.cpp, measured here",
    ]  # fmt: skip
    assert re.findall(r"</svg>([^<]+)</li>", plot) == ["codes: search", "codes: gptq", "llama.cpp, measured here"]
    assert "Q4_K_M gptq: 105.45 MB, mean KLD 0.0100 ± 0.0008" in plot
    assert "llama.cpp Q4_K_M: 105.45 MB, mean KLD 0.0400 ± 0.0033" in plot
    assert len(re.findall(r">Q4_K_M<", plot.partition("</svg>")[0])) == 1
    assert ", published: " not in plot, "what was measured here takes their place"
    assert "llama.cpp's own files of the same types" in plot.replace("&#39;", "'")
    assert "Others' files of the same types" in page
    assert "Q4_K_M 0.41×, Q4_K_M gptq 0.25×" in page
    assert '<h3>Q4_K_M gptq <span class="v pass">' in page


def test_without_curves_there_is_no_legend_of_them() -> None:
    plot = render(sample()).split("<h3>Size against divergence</h3>")[1].split("</figure>")[0]
    assert re.findall(r"</svg>([^<]+)</li>", plot) == ["codes: search"]
    [one, _] = sample().targets
    alone = render(sample().model_copy(update={"targets": [one]}))
    assert "codes: search" not in alone
    assert "files of the same types" not in alone


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_draws_the_curves_apart(tmp_path: Path, dark: bool) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(coded()), encoding="utf-8")
    line = "[...document.querySelectorAll('svg path.e')].filter(p => p.querySelector('title'))"
    with Browser(tmp_path / "profile") as browser:
        for width in (360, 1280):
            browser.open(page, width, dark=dark)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            dashes = browser.evaluate(f"{line}.map(p => getComputedStyle(p).strokeDasharray)")
            assert len(dashes) == len(set(dashes)) == 3
            ink = "rgb(230, 232, 235)" if dark else "rgb(27, 31, 36)"
            assert browser.evaluate(f"{line}.map(p => getComputedStyle(p).stroke)") == [ink] * 3
            seen = browser.evaluate(f"{line}.map(p => p.getTotalLength())")
            assert all(length > 20 for length in seen)
            fills = browser.evaluate(
                "[...document.querySelectorAll('.key svg [class^=\"f s\"]')].slice(0, 2).map(s => getComputedStyle(s).fill)"
            )
            assert len(set(fills)) == 2


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_it_on_a_phone_and_a_desk(tmp_path: Path, dark: bool) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(several()), encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        for width in (360, 390, 1280):
            browser.open(page, width, dark=dark)
            asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
            assert asked == [page.as_uri()]
            said = [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
            assert said == []
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate("document.querySelectorAll('svg[role=img]').length") == 8
        background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
        browser.open(page, 360, dark=dark)
        sizes = browser.evaluate(
            "[...document.querySelectorAll('svg[role=img] text')].map(t => parseFloat(getComputedStyle(t).fontSize)"
            " * t.ownerSVGElement.getBoundingClientRect().width / 360)"
        )
        assert min(sizes) >= 9.5, "text in a drawing is too small at 360 px"
