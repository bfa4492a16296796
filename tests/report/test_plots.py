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


def points(*given: tuple[str, int, float, float, bool]) -> list[plots.Point]:
    return [plots.Point(label, n, *rest, type=label) for n, (label, *rest) in enumerate(given)]


@pytest.mark.parametrize(("least", "greatest"), [(67.3, 105.4), (0.1, 100.0), (5.0, 5.0), (0.0, 0.0), (3.9e3, 4.1e3)])
def test_an_axis_between_two_values_shows_both(least: float, greatest: float) -> None:
    axis = plots.between(least, greatest, 0, 100)
    assert 0 <= axis.low <= least <= greatest <= axis.high
    assert 2 <= len(axis.ticks) <= 7
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


@pytest.mark.parametrize("values", [[0.004, 0.05], [1e-5, 2.0], [0.0, 0.01], [0.0], [], [float("inf"), 0.1], [1.0]])
def test_a_logarithmic_axis_ends_beyond_its_values(values: list[float]) -> None:
    axis = plots.decades(values, 100, 0)
    assert 2 <= len(axis.ticks) <= 8
    for value in values:
        if 0 < value < float("inf"):
            assert axis.low < value < axis.high
            assert 0 < axis.at(value) < 100
    assert axis.at(0.0) == 100


def test_points_lie_where_their_numbers_say() -> None:
    given = points(("a", 50_000_000, 0.1, 0.01, True), ("b", 100_000_000, 0.2, 0.01, False))
    svg = plots.size_against_divergence(given, 0.15, [("Q4_K_M", 80_000_000, 0.03), ("Q2_K", 40_000_000, 0.4)])
    root = ET.fromstring(svg)
    [disc] = root.iter("circle")
    x = plots.between(40, 100, plots.LEFT, plots.WIDTH - plots.RIGHT)
    y = plots.decades([0.1, 0.11, 0.2, 0.21, 0.03, 0.4, 0.15], plots.HEIGHT - plots.BOTTOM, plots.TOP)
    assert float(disc.attrib["cx"]) == pytest.approx(x.at(50), abs=0.1)
    assert float(disc.attrib["cy"]) == pytest.approx(y.at(0.1), abs=0.1)
    assert "limit 0.15" in svg
    assert "Q4_K_M, published: 80.00 MB, mean KLD 0.0300" in svg


def crowd() -> list[plots.Point]:
    """Three types, each by the search, by GPTQ's engine and by a peer, a little apart."""
    types = {"Q2_K": (70e6, 0.3), "Q4_0": (90e6, 0.1), "Q4_K_M": (105e6, 0.02)}
    return [
        plots.Point(f"{type} {curve}", series, nbytes, factor * kld, 1e-4, True, type, curve)
        for series, (curve, factor) in enumerate((("search", 1.0), ("gptq", 0.8), ("peer", 2.0)))
        for type, (nbytes, kld) in types.items()
    ]


def test_points_of_a_curve_are_joined_by_size() -> None:
    given = crowd()
    root = ET.fromstring(plots.size_against_divergence(given, None))
    lines = {path[0].text: path for path in root.iter("path") if path.attrib["class"].startswith("e ")}
    assert {name: path.attrib["class"] for name, path in lines.items()} == {"search": "e d0", "gptq": "e d1", "peer": "e d2"}
    for series, sign in ((0, "circle"), (1, "rect")):
        spots = [sorted(float(s.attrib.get("cx", s.attrib.get("x", 0))) for s in root.iter(sign))]
        along = [float(spot.split()[0]) for spot in lines[given[3 * series].curve].attrib["d"].removeprefix("M").split("L")]
        assert along == sorted(along)
        assert along == pytest.approx([x + 4.5 * series for x in spots[0]], abs=0.11)
    assert "search" not in plots.size_against_divergence(given[:1], None).split("</title>", 1)[1]


def test_a_type_is_named_once_where_its_points_lie_together() -> None:
    svg = plots.size_against_divergence(crowd(), None)
    labels = re.findall(r'<text class="l" x="(\S+)" y="(\S+)" text-anchor="(\w+)">(\w+)<', svg)
    assert sorted(text for *_, text in labels) == ["Q2_K", "Q4_0", "Q4_K_M"]
    apart = [point for point in crowd() if point.type == "Q4_0"]
    far = plots.Point("Q4_0 worse", 3, 90e6, 5.0, 0.0, True, "Q4_0")
    assert plots.size_against_divergence([*apart, far], None).count(">Q4_0<") == 2
    signs = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="(\S+)" cy="(\S+)"', svg)]
    for x, y, anchor, text in labels:
        wide, left = 7.5 * len(text), float(x)
        left -= {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        assert not [spot for spot in signs if left < spot[0] < left + wide and float(y) - 10 < spot[1] < float(y) + 2]


def test_a_legend_says_how_the_points_of_a_curve_look() -> None:
    keys = {name: key for key, name in plots.legend(crowd())}
    assert list(keys) == ["search", "gptq", "peer"]
    assert all('class="e d' in key for key in keys.values())
    assert "circle" in keys["search"]
    assert "rect" in keys["gptq"]
    one = [point for point in crowd() if point.type == "Q4_0"]
    assert [(name, "e d" in key) for key, name in plots.legend(one)] == [("search", False), ("gptq", False), ("peer", False)]
    cross = plots.Point("llama.cpp Q4_0", None, 9e7, 0.01, 0.0, True, "Q4_0", "llama.cpp")
    assert 'class="i"' in {name: key for key, name in plots.legend([*one, cross])}["llama.cpp"]
    assert plots.legend(one[:1]) == []
    mixed = [plots.Point("a", n, 1e6 * n, 0.1, 0.0, True, "a", "search") for n in (1, 2)]
    assert [("e d0" in key, "rect" in key) for key, _ in plots.legend(mixed)] == [(True, False)], (
        "signs of its artefacts differ"
    )


def test_memory_shows_the_machine_that_suffices_and_those_that_do_not() -> None:
    GiB = 1 << 30
    machines = {8: 6.0, 12: 10.0, 16: 14.0, 24: 22.0}
    svg = plots.memory_against_context([plots.Line("a", 0, [(512, 5 * GiB, None), (1024, 8 * GiB, 9 * GiB)])], machines)
    assert ">8 GB<" in svg
    assert ">12 GB<" in svg
    assert ">16 GB<" not in svg
    assert "measured 9.00 GiB, predicted 8.00 (-11.1%)" in svg


def test_speeds_show_the_spread_of_their_rounds() -> None:
    svg = plots.speed_bars([plots.Bar("F16", None, 50.0), plots.Bar("Q4", 0, 100.0, 2.0, 1.5, 2.5)], "tokens per second")
    x = plots.Axis(0, 125, 1, plots.WIDTH - 92)
    assert "Q4: 1.50 to 2.50 times in the rounds" in svg
    assert f"M{x.at(75):.1f} " in svg
    assert f"H{x.at(125):.1f}" in svg


def test_everything_drawn_lies_inside() -> None:
    long = [plots.Line(f"series {n}", n, [(512 << k, (n + 1) << (28 + k), None) for k in range(9)]) for n in range(6)]
    fast = plots.Bar("Q4", 0, 2000.0, 2000.0, 1000.0, 9000.0)
    published = [(f"Q{n}_K_M", 300.0 + 40 * n, 10.0**-n) for n in range(2, 9)]
    drawings = [
        plots.memory_against_context(long, {8: 6, 64: 62}),
        plots.speed_bars([plots.Bar("F16", None, 1.0), fast], "tokens per second"),
        plots.layer_map({("attn_q", n): n / 80 for n in range(80)}),
        plots.layer_map({("a very long name of a role.with dots", 0): 0.1}),
        plots.size_against_divergence(points(("only", 500, 0.0, 0.0, True)), None),
        plots.size_against_divergence(points(("one", 500, 0.1, 0.2, True)), 0.05, published),
        plots.size_against_divergence(crowd(), 0.01),
    ]
    for svg in drawings:
        ET.fromstring(svg)
        width, height = map(float, re.findall(r'viewBox="0 0 (\S+) (\S+)"', svg)[0])
        for x in re.findall(r'(?: x|cx)="(\S+?)"', svg):
            assert 0 <= float(x) <= width
        for y in re.findall(r'(?: y|cy)="(\S+?)"', svg):
            assert 0 <= float(y) <= height


def test_labels_keep_clear_of_neighbours() -> None:
    given = points(
        ("Q4_K_M", 4_400_000_000, 0.01, 0.0, True),
        ("Q8_0", 7_700_000_000, 0.001, 0.0, True),
        ("Q2_K", 14_500_000_000, 0.3, 0, True),
        ("Q3_K", 14_400_000_000, 0.3, 0, True),
    )
    svg = plots.size_against_divergence(given, None)
    anchors = {label: side for side, label in re.findall(r'text-anchor="(\w+)">(Q\w+)<', svg)}
    assert anchors == {"Q4_K_M": "start", "Q8_0": "start", "Q2_K": "middle", "Q3_K": "end"}
