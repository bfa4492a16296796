"""The closing table, drawn and plain."""

import io

from report.sample_manifest import sample
from rich.console import Console

from quantkit.report import table


def drawn(**options: object) -> str:
    out = io.StringIO()
    table.draw(sample(), Console(file=out, **options))  # type: ignore[arg-type]
    return out.getvalue()


def test_a_terminal_gets_one_table() -> None:
    text = drawn(force_terminal=True, width=180, color_system=None)
    assert "1.0182" in text
    assert "100 (1.86×)" in text
    assert "✗ fail" in text
    assert "against F16 of the same source" in text


def test_a_log_gets_lines_that_do_not_wrap() -> None:
    lines = drawn(width=20).splitlines()
    assert "perplexity ratio  1.0182" in lines
    assert "verdict           ✓ pass" in lines
    assert len(lines) == 2 * 10 + 2
    assert lines[-1] == "× is against F16 of the same source in the same run"


def test_brackets_in_names_are_no_markup() -> None:
    manifest = sample()
    target = manifest.targets[0]
    odd = target.model_copy(update={"files": [target.files[0].model_copy(update={"name": "a[red]b.gguf"})]})
    out = io.StringIO()
    table.draw(manifest.model_copy(update={"targets": [odd]}), Console(file=out, force_terminal=True, width=180))
    assert "a[red]b.gguf" in out.getvalue()
