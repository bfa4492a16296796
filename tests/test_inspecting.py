"""What a checkpoint is and where it runs is said from headers alone, and agrees with what a plan says."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

import quantkit
from quantkit import inspecting, screen
from quantkit.errors import InputError
from quantkit.source.licences import redistribution


def test_sizes_are_those_of_a_plan_and_more_memory_holds_more(pico):
    found = inspecting.inspect(str(pico("llama")))
    assert (found.architecture, found.kind, found.context, found.licence) == ("llama", "decoder", 2048, "apache-2.0")
    forms = {form.type: form for form in found.forms}
    assert set(inspecting.TYPES) < set(forms)
    for type in ("Q8_0", "Q4_K_M"):
        assert forms[type].nbytes == quantkit.plan(str(pico("llama")), type=type).targets[0].nbytes
    assert forms["W4G128"].exact
    assert forms["INT8"].nbytes > forms["INT4"].nbytes
    assert list(forms["F16"].fits) == [8, 12, 16, 24, 32, 64]
    assert all(form.here == 2048 for form in found.forms)


def test_a_machine_that_is_too_small_is_said(pico):
    small = inspecting.inspect(str(pico("llama")), memory=inspecting.memory_of("2GB"))
    assert all(form.here is None for form in small.forms)
    assert inspecting.inspect(str(pico("llama")), named="colab").memory == 12 << 30


def test_an_encoder_is_made_no_gptq_of(pico):
    assert {form.format for form in inspecting.inspect(str(pico("bert"))).forms} == {"gguf", "onnx"}


def test_what_cannot_be_made_is_named_with_the_reason(pico):
    refused = inspecting.inspect(str(pico("roberta"))).refused
    assert "no GGUF form here" in refused["gguf Q4_K_M"]


def test_types_that_share_a_reason_share_a_line(pico):
    said = io.StringIO()
    screen.show_inspection(Console(file=said, width=160), inspecting.inspect(str(pico("roberta"))))
    (line,) = [line for line in said.getvalue().splitlines() if "no GGUF form here" in line]
    assert line.startswith("gguf F16, Q8_0, ")


@pytest.mark.parametrize(("text", "nbytes"), [("12GB", 12 << 30), ("1.5g", 3 << 29), ("800 MiB", 800 << 20)])
def test_memory_as_people_write_it(text, nbytes):
    assert inspecting.memory_of(text) == nbytes


def test_what_is_no_machine_and_no_size_is_refused(pico):
    with pytest.raises(InputError, match="give gigabytes"):
        inspecting.memory_of("lots")
    with pytest.raises(InputError, match="known: colab"):
        inspecting.inspect(str(pico("llama")), named="abacus")


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ("apache-2.0", "yes"), ("cc-by-nc-4.0", "without commercial use"), ("cc-by-nd-4.0", "no:"), ("llama3.1", "Built with"),
        ("gemma", "own terms"), ("odd-licence", "'odd-licence'"), (None, "unknown"), ("mit, cc-by-nc-4.0", "mit: yes"),
    ],
)  # fmt: skip
def test_what_a_licence_says_of_passing_it_on(licence, said):
    assert said in redistribution(licence)


def test_the_command(pico):
    command = [sys.executable, "-m", "quantkit", "inspect", str(pico("llama")), "--memory", "12GB"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["memory"] == 12 << 30
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert "Q4_K_M" in shown
    assert "may a quantised copy be passed on?" in shown
