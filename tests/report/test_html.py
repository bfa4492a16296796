"""The report page: what it says, what it escapes, and how a browser takes it."""

import re
from pathlib import Path

import pytest
from report.browser import CHROMIUM, Browser
from report.sample_manifest import HOSTILE, sample

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


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_it_on_a_phone_and_a_desk(tmp_path: Path, dark: bool) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(sample()), encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        for width in (360, 390, 1280):
            browser.open(page, width, dark=dark)
            asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
            assert asked == [page.as_uri()]
            said = [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
            assert said == []
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate("document.querySelectorAll('svg[role=img]').length") == 6
        background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
        browser.open(page, 360, dark=dark)
        sizes = browser.evaluate(
            "[...document.querySelectorAll('svg[role=img] text')].map(t => parseFloat(getComputedStyle(t).fontSize)"
            " * t.ownerSVGElement.getBoundingClientRect().width / 360)"
        )
        assert min(sizes) >= 9.5, "text in a drawing is too small at 360 px"
