"""Drawings: scales, and shapes where the numbers say."""

import re
import xml.etree.ElementTree as ET

import pytest

from quantkit.report import plots


@pytest.mark.parametrize("greatest", [0.0, 0.003, 0.07, 1.0, 7.3, 105.4, 40_000.0, float("inf")])
def test_a_linear_axis_covers_its_greatest_value(greatest: float) -> None:
    axis = plots.linear(greatest, 0, 100)
    assert axis.at(0) == 0
    assert axis.ticks[-1] == axis.high
    assert 2 <= len(axis.ticks) <= 7
    if greatest < float("inf"):
        assert axis.high >= greatest


def test_a_logarithmic_axis_is_even_in_octaves() -> None:
    axis = plots.Axis(512, 8192, 0, 100, True)
    assert [axis.at(value) for value in (512, 1024, 2048, 4096, 8192)] == [0, 25, 50, 75, 100]


def test_points_lie_where_their_numbers_say() -> None:
    svg = plots.size_against_divergence([("a", 50_000_000, 0.1, 0.01, True), ("b", 100_000_000, 0.2, 0.01, False)], 0.15)
    root = ET.fromstring(svg)
    [disc] = root.iter("circle")
    x, y = (
        plots.linear(100, plots.LEFT, plots.WIDTH - plots.RIGHT),
        plots.linear(0.21, plots.HEIGHT - plots.BOTTOM, plots.TOP),
    )
    assert float(disc.attrib["cx"]) == pytest.approx(x.at(50), abs=0.1)
    assert float(disc.attrib["cy"]) == pytest.approx(y.at(0.1), abs=0.1)
    assert "limit 0.15" in svg


def test_memory_shows_the_machine_that_suffices_and_those_that_do_not() -> None:
    GiB = 1 << 30
    machines = {8: 6.0, 12: 10.0, 16: 14.0, 24: 22.0}
    svg = plots.memory_against_context([("a", [(512, 5 * GiB, None), (1024, 8 * GiB, 9 * GiB)])], machines)
    assert ">8 GB<" in svg
    assert ">12 GB<" in svg
    assert ">16 GB<" not in svg
    assert "measured 9.00 GiB" in svg


def test_everything_drawn_lies_inside() -> None:
    long = [(f"series {n}", [(512 << k, (n + 1) << (28 + k), None) for k in range(9)]) for n in range(6)]
    drawings = [
        plots.memory_against_context(long, {8: 6, 64: 62}),
        plots.speed_bars([("F16", 1.0, 1.0), ("Q4", 2000.0, 2000.0)], "tokens per second"),
        plots.layer_map({("attn_q", n): n / 80 for n in range(80)}),
        plots.size_against_divergence([("only", 500, 0.0, 0.0, True)], None),
    ]
    for svg in drawings:
        ET.fromstring(svg)
        width, height = map(float, re.findall(r'viewBox="0 0 (\S+) (\S+)"', svg)[0])
        for x in re.findall(r'(?: x|cx)="(\S+?)"', svg):
            assert 0 <= float(x) <= width
        for y in re.findall(r'(?: y|cy)="(\S+?)"', svg):
            assert 0 <= float(y) <= height


def test_labels_keep_clear_of_neighbours() -> None:
    points = [
        ("Q4_K_M", 4_400_000_000, 0.01, 0.0, True),
        ("Q8_0", 7_700_000_000, 0.001, 0.0, True),
        ("Q2_K", 14_500_000_000, 0.3, 0, True),
    ]
    svg = plots.size_against_divergence(points, None)
    anchors = {label: side for side, label in re.findall(r'text-anchor="(\w+)">(Q\w+)<', svg)}
    assert anchors == {"Q4_K_M": "end", "Q8_0": "start", "Q2_K": "start"}
