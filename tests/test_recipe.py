"""A recipe: every fault at once, with file, line and remedy; and a digest of what determines the bytes."""

import json

import pytest

from quantkit import recipe
from quantkit.errors import InputError, RecipeError
from quantkit.recipe_file import of_call, parse, read, without_file

GOOD = """\
source: folder/model
targets:
  - {format: gguf, type: Q4_K_M}
"""


def faults(text):
    with pytest.raises(RecipeError) as caught:
        parse(text, "r", "r.yaml")
    return str(caught.value).splitlines()


def test_every_fault_at_once_with_its_line():
    found = faults(
        "source: x\nsorce: y\nstrict: maybe\ntargets:\n  - {format: gguf, type: Q4_K_MM}\n  - format: gguf\n    typ: Q8_0\n"
        "checks:\n  perplexity: {chunks: 1, max_ration: 3}\n  latency: reprot\npublish:\n  - {foldr: x}\n"
    )
    assert [line.split(": ")[0:2] for line in found] == [
        ["r.yaml:2", "sorce"],
        ["r.yaml:3", "strict"],
        ["r.yaml:5", "targets[0].type"],
        ["r.yaml:6", "targets[1].type"],
        ["r.yaml:7", "targets[1].typ"],
        ["r.yaml:9", "checks.perplexity.chunks"],
        ["r.yaml:9", "checks.perplexity.max_ration"],
        ["r.yaml:10", "checks.latency"],
        ["r.yaml:12", "publish[0].folder"],
        ["r.yaml:12", "publish[0].foldr"],
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sorce: x\n" + GOOD, "did you mean source?"),
        (GOOD.replace("Q4_K_M", "q4_km"), "did you mean Q4_K_M?"),
        (GOOD.replace("gguf", "onxx"), "'onxx' is not one of 'gguf'"),
        (GOOD + "strict: false\nstrict: true\n", "given twice"),
        (GOOD + "  - {format: gguf, type: Q4_K_M}\n", "the same target twice: gguf-Q4_K_M"),
        ("source: x\ntargets: []\n", "at least one artefact"),
        ("targets: [", "not valid YAML"),
        ("", "this is empty"),
        ("- a\n", "this is a list"),
        (GOOD + "calibration: {tokens: 512, length: 1024}\n", "tokens: 512 hold no sequence of length: 1024"),
        (GOOD + "checks: {divergence: {max_mean: -1}}\n", "(got -1)"),
    ],
)
def test_says_what_is_wrong_and_the_remedy(text, said):
    assert said in "\n".join(faults(text))


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "mistral7b-q4.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=r"did you mean .*mistral7b-q4\.yaml"):
        read(tmp_path / "mistral-7b-q4.yaml")


def test_report_measures_without_a_gate():
    checks = parse(GOOD + "checks: {perplexity: report, latency: {min_decode_ratio: 2}}\n", "r", "r.yaml").recipe.checks
    assert checks.perplexity.max_ratio is None
    assert checks.latency.min_decode_ratio == 2


def test_a_target_may_lift_a_gate_for_itself():
    text = "source: x\ntargets:\n  - {format: gguf, type: Q8_0, checks: {latency: report}}\n  - {format: gguf, type: Q4_0}\n"
    made = parse(text + "checks: {latency: {min_decode_ratio: 2, rounds: 5}}\n", "r", "r.yaml").recipe
    lifted, held = (made.gates(target).latency for target in made.targets)
    assert (lifted.min_decode_ratio, lifted.rounds) == (None, 5)
    assert held.min_decode_ratio == 2


def test_checks_can_be_switched_off():
    made = parse(GOOD + "checks: false\n", "r", "r.yaml").recipe
    assert made.checks is None
    assert made.gates(made.targets[0]) is None


@pytest.mark.parametrize(
    ("addition", "said"),
    [
        ("checks:\n", "checks: empty: write false to measure nothing"),
        ("prompts: 7\n", "prompts: Input should be a valid list"),
        ("publish: &a [*a]\n", "an alias .* stands inside what its anchor"),
    ],
)
def test_values_of_another_kind(addition, said):
    with pytest.raises(RecipeError, match=said):
        parse(GOOD + addition, "r", "r.yaml")


def test_targets_of_one_type_may_differ_in_codes_and_importance():
    text = "source: x\ncalibration: {}\ntargets:\n" + "".join(
        f"  - {{format: gguf, type: Q4_0, codes: {codes}, imatrix: {imatrix}}}\n"
        for codes in ("search", "gptq")
        for imatrix in ("true", "false")
    )
    made = parse(text, "r", "r.yaml").recipe
    assert [made.mark(target) for target in made.targets] == ["", "static", "gptq", "gptq-static"]
    assert len({target.name for target in made.targets}) == len({made.digest(target) for target in made.targets}) == 4
    for keep, marks in (((0, 2), ["", "gptq"]), ((1, 2), ["", "gptq"]), ((2, 3), ["", "static"]), ((3,), [""])):
        some = made.model_copy(update={"targets": tuple(made.targets[n] for n in keep)})
        assert [some.mark(target) for target in some.targets] == marks


@pytest.mark.parametrize("other", ["rules: [{match: '*', type: Q8_0}]", "quality: high", "imatrix: false"])
def test_targets_that_differ_otherwise_are_refused(other):
    text = f"source: x\ntargets: [{{format: gguf, type: Q4_0}}, {{format: gguf, type: Q4_0, {other}}}]\n"
    with pytest.raises(RecipeError, match="the same target twice: gguf-Q4_0; remove one, or make them by two recipes"):
        parse(text, "r", "r.yaml")


def test_peers_want_a_target_that_they_make_too():
    made = parse(GOOD + "checks: {peers: [llama.cpp]}\n", "r", "r.yaml").recipe
    assert made.checks.peers == ("llama.cpp",)
    for target in ("format: gguf, type: F16", "format: gguf, type: auto, size: 95MB", "format: onnx"):
        with pytest.raises(RecipeError, match=r"checks.peers: llama.cpp makes GGUF files of stock quantised types"):
            parse(f"source: x\ntargets: [{{{target}}}]\nchecks: {{peers: [llama.cpp]}}\n", "r", "r.yaml")
    assert "did you mean llama.cpp?" in "\n".join(faults(GOOD + "checks: {peers: [lama.cpp]}\n"))


def test_digest_covers_what_determines_the_bytes_and_nothing_else():
    def digest(text):
        made = parse(text, "r", "r.yaml").recipe
        return made.digest(made.targets[0])

    same = digest(GOOD)
    assert digest("# a comment\n" + GOOD.replace("folder/model", "elsewhere")) == same
    assert digest(GOOD + "publish: [{folder: out}]\nchecks: {divergence: {max_mean: 1}}\nstrict: true\n") == same
    assert digest(GOOD.replace("Q4_K_M", "Q4_K_S")) != same
    assert digest(GOOD.replace("Q4_K_M", "Q4_K_M, tokenizer: {pre: llama-bpe}")) != same


def test_schema_allows_the_words_that_stand_for_a_mapping():
    found = recipe.schema()
    assert {"const": False} in found["properties"]["checks"]["anyOf"]
    assert {"const": "report"} in found["$defs"]["Checks"]["properties"]["latency"]["anyOf"]


def test_schema_is_json_and_knows_the_types():
    text = json.dumps(recipe.schema())
    assert all(f'"{name}"' in text for name in ("Q4_K_M", "max_ratio", "min_decode_ratio", "publish"))


def test_a_call_says_nothing_that_its_recipe_says(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    plain = {"format": "gguf", "type": None, "out": None, "checks": True}
    assert of_call(path, None, **plain).recipe.source == "folder/model"
    assert of_call(path, "elsewhere", **plain).recipe.source == "elsewhere"
    for again in ({"type": "Q8_0"}, {"out": tmp_path}, {"checks": False}):
        with pytest.raises(InputError, match="is a recipe: its targets, publish and checks"):
            of_call(path, None, **plain | again)
    with pytest.raises(InputError, match="a source and the type"):
        of_call(None, "folder/model", **plain)


def test_a_call_without_a_recipe_is_a_recipe(tmp_path):
    document = without_file("hf://org/Model-1B@main", "gguf", "Q8_0", tmp_path, checks=False)
    assert document.name == "model-1b-main-q8_0"
    assert document.recipe.checks is None
    assert [target.folder for target in document.recipe.publish] == [str(tmp_path)]
    with pytest.raises(RecipeError, match="Q9"):
        without_file("x", "gguf", "Q9", None, checks=True)


def target(keys):
    return parse(f"source: x\ntargets: [{{format: gguf, {keys}}}]\n", "r", "r.yaml").recipe.targets[0]


def test_sizes_are_written_as_people_write_them():
    assert target("type: auto, size: 95MB").size == 95_000_000
    assert target("type: auto, size: 1.5GiB").size == 3 << 29
    assert target("type: Q8_0, split: 4 GB").split == 4_000_000_000
    assert target("type: auto, size: 95MB").label == "AUTO_95MB"
    assert target("type: auto, bits_per_weight: 4.5").label == "AUTO_4_5BPW"
    assert target("type: auto, bits_per_weight: 4.5").budget(1000) == 562
    with pytest.raises(RecipeError, match=r"'big' is no size: write 4GB, 95MB, 1.5GiB or a number of bytes"):
        target("type: Q8_0, split: big")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("type: auto", "type: auto needs one of size: 95MB and bits_per_weight: 4.5"),
        ("type: auto, size: 95MB, bits_per_weight: 4", "type: auto needs one of"),
        ("type: Q4_0, size: 95MB", "size belongs to type: auto"),
        ("type: auto, size: 95MB, pure: true", "leave one out"),
        ("type: Q2_K_S", "Q2_K_S is made with importance weights only"),
        ("type: Q4_0, rules: [{match: x, type: Q9_0}]", "'Q9_0' is not one of 'F32'"),
        ("type: Q4_0, rules: [{type: Q8_0}]", "match: required and missing"),
    ],
)
def test_keys_that_do_not_go_together(keys, said):
    with pytest.raises(RecipeError, match=said):
        target(keys)


def test_an_imatrix_file_needs_no_calibration():
    found = target("type: Q2_K_S, imatrix: some/imatrix.gguf")
    assert found.imatrix == "some/imatrix.gguf"
    assert not found.calibrated
    assert found.name == "gguf-Q2_K_S-imatrix"


def test_codes_are_calibrated_on_a_mix_where_no_text_is_named():
    engine = "source: x\ntargets: [{format: gguf, type: Q4_0, codes: gptq}]\ncalibration: {tokens: 2048}\n"
    mixed = parse(engine, "name", "here").recipe
    assert mixed.calibration.counts() == [("builtin:python-docs", 2), ("self", 2)]
    named = parse(engine.replace("{tokens", "{text: a.txt, tokens"), "name", "here").recipe
    assert named.calibration.counts() == [("a.txt", 4)]
    importance = parse(engine.replace("codes: gptq", "imatrix: true"), "name", "here").recipe
    assert importance.calibration.counts() == [("builtin:python-docs", 4)]
