"""Pieces of Markdown that text from outside cannot leave."""

from __future__ import annotations

from quantkit.report import markdown


def test_a_cell_cannot_end_its_column() -> None:
    assert markdown.table(("a", "b"), [("x | y", "z")]).splitlines() == ["| a | b |", "| --- | --- |", r"| x \| y | z |"]


def test_a_fence_is_longer_than_those_inside() -> None:
    assert markdown.fenced("```\nx\n```\n", "yaml") == "````yaml\n```\nx\n```\n````"


def test_text_is_one_line_without_markup() -> None:
    assert markdown.plain("<b>*bold*</b>\n[x](y) `z`") == r"&lt;b&gt;\*bold\*&lt;/b&gt; \[x\](y) \`z\`"
    assert markdown.code("a`b\nc") == "`a'b c`"
