"""A recipe: every fault at once, with file, line and remedy; and a digest of what determines the bytes."""

import json

import pytest

from quantkit import recipe
from quantkit.errors import RecipeError
from quantkit.recipe_file import parse, read, without_file

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


def test_two_targets_of_one_file_are_refused():
    text = "source: x\ntargets: [{format: gguf, type: Q4_0}, {format: gguf, type: Q4_0, imatrix: true}]\ncalibration: {}\n"
    with pytest.raises(RecipeError, match="Q4_0 with and without imatrix would be one file"):
        parse(text, "r", "r.yaml")


def test_digest_covers_what_determines_the_bytes_and_nothing_else():
    def digest(text):
        made = parse(text, "r", "r.yaml").recipe
        return made.digest(made.targets[0])

    same = digest(GOOD)
    assert digest("# a comment\n" + GOOD.replace("folder/model", "elsewhere")) == same
    assert digest(GOOD + "publish: [{folder: out}]\nchecks: {divergence: {max_mean: 1}}\nstrict: true\n") == same
    assert digest(GOOD.replace("Q4_K_M", "Q4_K_S")) != same
    assert digest(GOOD.replace("Q4_K_M", "Q4_K_M, tokenizer: {pre: llama-bpe}")) != same


def test_schema_is_json_and_knows_the_types():
    text = json.dumps(recipe.schema())
    assert all(f'"{name}"' in text for name in ("Q4_K_M", "max_ratio", "min_decode_ratio", "publish"))


def test_a_call_without_a_recipe_is_a_recipe(tmp_path):
    document = without_file("hf://org/Model-1B@main", "gguf", "Q8_0", tmp_path, checks=False)
    assert document.name == "model-1b-main-q8_0"
    assert document.recipe.checks is None
    assert [target.folder for target in document.recipe.publish] == [str(tmp_path)]
    with pytest.raises(RecipeError, match="Q9"):
        without_file("x", "gguf", "Q9", None, checks=True)
