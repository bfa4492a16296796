"""Checkpoints that nobody vouches for: refused with their fault named, before anything is run or much is allocated."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import shard, write_gguf
from safetensors.numpy import load_file

from quantkit import chat_template, source
from quantkit.checks import samples
from quantkit.codecs import gguf_kv
from quantkit.errors import InputError, SourceError, UnsupportedError
from quantkit.manifest import FileRecord, RecipeRecord
from quantkit.source import card, documents, folder, patterns, vocabulary
from quantkit.values import Tokenizer

MEMORY = 768 << 20
"""Bytes of address space that a child may have for a file that wants more."""


@pytest.fixture
def copy(pico: Callable[[str], Path], tmp_path: Path) -> Path:
    """A pico Llama of one's own to damage."""
    return Path(shutil.copytree(pico("llama"), tmp_path / "model"))


def in_a_small_child(code: str, *words: object) -> str:
    """What a Python child with MEMORY bytes says last; it has a minute."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    command = [sys.executable, "-c", code, *map(str, words)]
    child = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=limit,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    return (child.stdout.strip() or child.stderr).splitlines()[-1]


REFUSED = """\
import sys
from pathlib import Path
from quantkit.errors import SourceError
{do}
try:
    read(Path(sys.argv[1]))
except SourceError as error:
    print(f"refused: {{error}}")
"""
READS_JSON = REFUSED.format(do="from quantkit.source.documents import read_json as read")
READS_GGUF = REFUSED.format(do="from quantkit.codecs.gguf_kv import read")
READS_HEADER = REFUSED.format(
    do="from quantkit.source import folder\n"
    "def read(path):\n"
    "    with path.open('rb') as file:\n"
    "        folder.read_header(file.read(8), file.read, path.stat().st_size, path.name)"
)


def sparse(path: Path, size: int) -> Path:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("name", ["../../stolen.safetensors", "/etc/passwd", "a/../../b", "c:\\x", "..", "", "x\0y"])
@pytest.mark.parametrize("index", [folder.INDEX, folder.PICKLED[1]])
def test_an_index_leads_nowhere_else(copy: Path, name: str, index: str) -> None:
    placed = dict.fromkeys(shard(copy), name)
    (copy / folder.INDEX).unlink()
    for stray in copy.glob("*.safetensors"):
        stray.unlink()
    (copy / folder.PICKLED[0]).touch()
    if index == folder.PICKLED[1]:
        (copy / folder.PICKLED[0]).unlink()
    (copy / index).write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(SourceError, match=r"leads out of the checkpoint's folder"):
        folder.shards_of({"weight_map": placed}, index)
    with pytest.raises(SourceError, match=r"leads out of the checkpoint's folder"):
        source.describe(str(copy))


def test_the_hubs_cache_of_links_is_read(copy: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    place = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    place.mkdir(parents=True)
    for number, path in enumerate(sorted(copy.iterdir())):
        path.rename(repository / "blobs" / f"{number:064x}")
        (place / path.name).symlink_to(f"../../blobs/{number:064x}")
    found = source.describe(str(place))
    assert found.licence.files == {"LICENSE": "Apache License, Version 2.0\n"}
    assert found.tokenizer is not None


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "chat_template.jinja", "tokenizer.json", "config.json"])
def test_a_document_is_no_link_to_elsewhere(copy: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "private").write_text('{"a": "secret"}')
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to("../private")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": None}))
    with pytest.raises(SourceError, match=rf"{name} is a link to .*private, outside of its folder"):
        source.describe(str(copy))


def test_weights_may_lie_elsewhere(copy: Path, tmp_path: Path) -> None:
    (copy / folder.SINGLE).rename(tmp_path / "elsewhere")
    (copy / folder.SINGLE).symlink_to(tmp_path / "elsewhere")
    assert source.describe(str(copy)).weights.infos


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "generation_config.json", folder.INDEX])
@pytest.mark.parametrize("form", ["[", '{"a":'])
def test_nesting_is_bounded(copy: Path, file: str, form: str) -> None:
    (copy / file).write_text(form * 200_000)
    with pytest.raises(SourceError, match=r"200,000 levels deep, at most 100 are read"):
        source.describe(str(copy))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "README.md", "LICENSE", "chat_template.jinja"])
def test_a_sparse_file_of_2_gb_is_not_read(tmp_path: Path, file: str) -> None:
    said = in_a_small_child(
        REFUSED.format(do="from quantkit.source.documents import read_bytes as read"), sparse(tmp_path / file, 2 << 30)
    )
    assert said.startswith(f"refused: {file} has 2,147,483,648 bytes"), said


@pytest.mark.parametrize(
    ("piece", "count", "what"),
    [("[],", 5_000_000, "lists and objects"), ('"a b",', 9_000_000, "values"), ('{"a":[]},', 3_000_000, "lists and objects")],
)
def test_a_bomb_of_merges_is_counted_before_it_is_parsed(tmp_path: Path, piece: str, count: int, what: str) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("w") as file:
        file.write('{"model": {"merges": [')
        for _ in range(100):
            file.write(piece * (count // 100))
        file.write("0]}}")
    said = in_a_small_child(READS_JSON, path)
    assert said.startswith("refused: tokenizer.json is"), said
    assert what in said


def test_strings_do_not_count_as_structure() -> None:
    said = {"a": "[" * 500, "b": '\\"' + "{" * 500, "c": '"[,' * 200}
    assert documents.parse(json.dumps(said).encode(), "x.json") == said
    large = {"a" * 5: "x[" * (9 << 20), "b\\": ["\\\\", "[" * (9 << 20)]}
    assert documents.parse(json.dumps(large).encode(), "tokenizer.json") == large
    with pytest.raises(SourceError, match="is not JSON"):
        documents.parse(b'{"a": "' + b'\\"' * 100_000, "x.json")


def pair(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def tensor(name: str, dimensions: list[int], offset: int = 0, rank: int | None = None) -> bytes:
    head = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(dimensions) if rank is None else rank)
    return head + struct.pack(f"<{len(dimensions)}QIQ", *dimensions, 0, offset)


def header(tensors: int = 0, pairs: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + rest


ABSURD = {
    "tensors": (header(tensors=1 << 60), "tensors, at most"),
    "pairs": (header(pairs=1 << 60), "pairs of metadata, at most"),
    "string": (header(pairs=1, rest=struct.pack("<Q", 1 << 62)), "at most 67108864 are a header"),
    "array": (header(pairs=1, rest=pair("a", 9, struct.pack("<IQ", 8, 1 << 60))), "items of an array, at most"),
    "nested arrays": (header(pairs=1, rest=pair("a", 9, struct.pack("<IQIQ", 9, 1, 9, 1))), "breaks off or is damaged"),
    "rank": (header(tensors=1, rest=tensor("a", [], rank=1 << 31)), "axes of a tensor, at most 4"),
    "alignment 0": (header(pairs=1, rest=pair("general.alignment", 4, struct.pack("<I", 0))), "no power of two"),
    "alignment 2^40": (header(pairs=1, rest=pair("general.alignment", 10, struct.pack("<Q", 1 << 40))), "no power of two"),
    "alignment a text": (header(pairs=1, rest=pair("general.alignment", 8, struct.pack("<Q", 2) + b"32")), "no power of two"),
    "a tensor twice": (header(tensors=2, rest=2 * tensor("a", [32])), "its tensors name 'a' twice"),
    "a key twice": (header(pairs=2, rest=2 * pair("a", 7, b"\1")), "its metadata name 'a' twice"),
}


@pytest.mark.parametrize("case", ABSURD)
def test_a_gguf_with_absurd_counts(tmp_path: Path, case: str) -> None:
    data, said = ABSURD[case]
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(SourceError, match=said):
        gguf_kv.read(tmp_path / "x.gguf")
    with pytest.raises(SourceError, match=said):
        source.describe(str(tmp_path / "x.gguf"))


@pytest.mark.parametrize("counts", [(1 << 60, 0), (0, 1 << 60), (1 << 18, 1 << 16), (0, 1 << 16)])
def test_a_gguf_of_nothing_but_zeros_takes_no_memory(tmp_path: Path, counts: tuple[int, int]) -> None:
    (tmp_path / "x.gguf").write_bytes(header(*counts))
    said = in_a_small_child(READS_GGUF, sparse(tmp_path / "x.gguf", 4 << 30))
    assert said.startswith("refused: x.gguf"), said


@pytest.mark.parametrize(
    ("dimensions", "offset", "said"),
    [
        ([1 << 40, 1 << 40], 0, "is truncated"),
        ([1 << 63, 1 << 63, 1 << 63, 4], 0, "is truncated"),
        ([32], 1 << 63, "is truncated"),
        ([256, 512], 64, "has not ended"),
    ],
)
def test_a_gguf_whose_tensors_lie_outside_or_over_each_other(
    pico: Callable[[str], Path], tmp_path: Path, dimensions: list[int], offset: int, said: str
) -> None:
    path = write_gguf(source.describe(str(pico("llama"))), tmp_path / "x.gguf")
    data = bytearray(path.read_bytes())
    name = b"blk.0.attn_norm.weight"
    at = data.index(name) + len(name)
    (rank,) = struct.unpack_from("<I", data, at)
    data[at : at + 4 + 8 * rank + 12] = struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, 0, offset)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=said):
        source.describe(str(path))


@pytest.mark.parametrize("count", [1 << 60, "many"])
def test_a_gguf_of_endless_parts(tmp_path: Path, count: object) -> None:
    value = struct.pack("<Q", 1 << 60) if count == 1 << 60 else struct.pack("<Q", 4) + b"many"
    (tmp_path / "x-00001-of-00002.gguf").write_bytes(
        header(pairs=1, rest=pair("split.count", 10 if count != "many" else 8, value))
    )
    with pytest.raises(SourceError, match=r"split\.count = .*, at most 99999 parts can be"):
        source.describe(str(tmp_path / "x-00001-of-00002.gguf"))


def safetensors(entries: str, data: bytes) -> bytes:
    return struct.pack("<Q", len(entries)) + entries.encode() + data


def entry(begin: int, end: int, shape: str = "[2]") -> str:
    return f'{{"dtype": "F32", "shape": {shape}, "data_offsets": [{begin}, {end}]}}'


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (f'{{"a": {entry(0, 8)}, "b": {entry(4, 12)}}}', "where byte 8 is next"),
        (f'{{"a": {entry(0, 8)}, "b": {entry(12, 20)}}}', "where byte 8 is next"),
        (f'{{"a": {entry(8, 0)}}}', "where byte 0 is next"),
        (f'{{"a": {entry(0, 1 << 62)}}}', "truncated"),
        (f'{{"a": {entry(0, 8)}, "a": {entry(0, 8)}}}', "names a twice"),
        ('{"a": ' + "[" * 5000, "levels deep"),
        (f'{{"a": {entry(0, 8, "[" + "9" * 5000 + "]")}}}', "is not JSON"),
    ],
)
def test_a_safetensors_header_that_lies(copy: Path, entries: str, said: str) -> None:
    (copy / folder.SINGLE).write_bytes(safetensors(entries, bytes(12)))
    with pytest.raises(SourceError, match=said):
        source.describe(str(copy))


def test_a_safetensors_header_of_absurd_length(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for count in (1 << 62, (2 << 30) - 8):
        path.write_bytes(struct.pack("<Q", count))
        said = in_a_small_child(READS_HEADER, sparse(path, 2 << 30))
        assert said.startswith("refused: model.safetensors"), said


class Command:
    """Unpickled without care, it runs a program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("old", [True, False])
def test_a_pickle_with_code_runs_nothing(copy: Path, tmp_path: Path, old: bool) -> None:
    (copy / folder.SINGLE).unlink()
    torch.save(
        {"model.norm.weight": Command(tmp_path / "ran")}, copy / folder.PICKLED[0], _use_new_zipfile_serialization=not old
    )
    with pytest.raises((SourceError, UnsupportedError), match=r"pytorch_model\.bin"):
        source.describe(str(copy))
    (copy / folder.PICKLED[0]).write_bytes(pickle.dumps(Command(tmp_path / "ran")))
    with pytest.raises((SourceError, UnsupportedError), match=r"pytorch_model\.bin"):
        source.describe(str(copy))
    assert not (tmp_path / "ran").exists()


def test_a_zip_that_grows_is_refused(copy: Path) -> None:
    (copy / folder.SINGLE).unlink()
    path = copy / folder.PICKLED[0]
    torch.save({"model.norm.weight": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as given:
        entries = {each.filename: given.read(each) for each in given.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in entries.items():
            packed.writestr(name, data + bytes(100 << 20 if name.endswith("data.pkl") else 0))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UnsupportedError, match="is compressed, which torch never writes"):
        source.describe(str(copy))


@pytest.mark.parametrize("held", [[1, 2], {"a": 1}, "text"])
def test_a_pickle_of_something_else(copy: Path, held: object) -> None:
    (copy / folder.SINGLE).unlink()
    torch.save(held, copy / folder.PICKLED[0])
    with pytest.raises(UnsupportedError, match="other than tensors by their names"):
        source.describe(str(copy))


@pytest.mark.parametrize("name", ["../x", "/x", "", "a/../../x", "a\\b", "a\nb"])
def test_a_manifests_names_stay_in_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="no name of"):
        FileRecord(name=name, nbytes=0, sha256="")
    with pytest.raises(ValueError, match="no name of"):
        RecipeRecord(name=name, digest="", text="")
    assert FileRecord(name="a/b.gguf", nbytes=0, sha256="").name == "a/b.gguf"


LOOPS = {
    "loops within loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = b %}{% endfor %}{% endfor %}",
    "texts that double": "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a long text": "{{ 'a' * 10000000000 }}",
    "a great power": "{{ 10 ** (10 ** 9) }}",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LOOPS)
def test_a_template_without_an_end_is_ended(case: str) -> None:
    tokenizer = Tokenizer({}, {}, LOOPS[case])
    with pytest.raises(SourceError, match=r"the chat template took more than 10 s or 1024 MB"):
        samples.render(tokenizer, "Hello")


def test_a_template_is_ended_when_its_memory_is(copy: Path) -> None:
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": LOOPS["a long text"]}))
    found = source.describe(str(copy)).tokenizer
    assert found is not None
    with pytest.raises(SourceError, match="the chat template took more than"):
        samples.render(found, "Hello")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__init__=1) }}",
        "{{ range(1000000) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_stays_in_the_sandbox(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    assert isinstance(chat_template.environment(True), ImmutableSandboxedEnvironment)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    (found,) = chat_template.render(template, [([{"role": "user", "content": "x"}], True)], {}, clock=False)
    assert found.text is None
    assert found.fault
    assert not (tmp_path / "ran").exists()


def test_templates_are_rendered_as_transformers_does() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (
        "{{ bos_token }}{% for m in messages %}{% if not loop.first %}{% continue %}{% endif %}{{ m | tojson }}\n{% endfor %}"
        "{% generation %}{{ strftime_now('%Y') }}{% endgeneration %}{% if tools is none %}none{% endif %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    wanted = render_jinja_template(
        [[{"role": "user", "content": "é<"}]], chat_template=template, add_generation_prompt=True, bos_token="<s>"
    )[0][0]
    assert samples.render(Tokenizer({}, {"bos_token": "<s>"}, template), "é<") == wanted


def with_expression(path: Path, expression: str) -> None:
    definition = json.loads((path / "tokenizer.json").read_text())
    definition["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    (path / "tokenizer.json").write_text(json.dumps(definition))


def test_an_expression_that_never_ends(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_expression(copy, r"\p{L}{1,3}|\s+(?!\S)|.")
    assert source.describe(str(copy)).tokenizer is not None
    with_expression(copy, "(a|aa)+$")
    with pytest.raises(SourceError, match=r"tokenizer\.json: '\(a\|aa\)\+\$' did not come to an end"):
        source.describe(str(copy))
    monkeypatch.setattr(patterns, "SECONDS", 5.0)
    with_expression(copy, r"(?:a*)*(?:a*)*(?:.*)*a*$\b☃")
    with pytest.raises(SourceError, match="did not come to an end"):
        source.describe(str(copy))


def test_expressions_that_are_known_are_not_tried() -> None:
    assert r"\p{N}{1,3}" in patterns.known()
    assert "(a|aa)+$" not in patterns.known()


def test_code_of_a_checkpoint_is_not_imported(copy: Path, tmp_path: Path) -> None:
    from quantkit import skeleton

    marker = tmp_path / "ran"
    (copy / "modeling_llama.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Model: pass\n")
    config = json.loads((copy / "config.json").read_text())
    config |= {
        "auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "modeling_llama.Model"),
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "someone/kernel",
        "trust_remote_code": True,
    }
    (copy / "config.json").write_text(json.dumps(config))
    found = source.describe(str(copy))
    model = skeleton.build(found.config, "AutoModelForCausalLM")
    assert type(model).__module__.startswith("transformers.models.llama")
    assert model.config._attn_implementation in ("sdpa", "eager")
    assert folder.reconstruct(found.config)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("matter", "said"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nlicense: [*b, *b]", "by aliases"),
        ("license: " + "[" * 100_000, "100,000 levels deep"),
        ("license: !!python/object/apply:os.system ['touch ran']", "not YAML"),
        ("x: " + "a" * (2 << 20), "characters, at most"),
    ],
)
def test_front_matter_that_grows_or_runs(tmp_path: Path, matter: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(f"---\n{matter}\n---\n")
    with pytest.raises(SourceError, match=said):
        card.front_matter(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("number", [10**12, -1, "x", None, 1.5])
def test_ids_that_would_fill_memory(copy: Path, number: object) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    (copy / "vocab.json").write_text(json.dumps({"a": 0, "b": number}))
    (copy / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(SourceError, match=r"ids are below 4,194,304"):
        vocabulary.read(copy, {"tokenizer_class": "GPT2Tokenizer"}, {})
    (copy / "vocab.json").write_text(json.dumps({"a": 0}))
    said = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {"9" * 5000: {"content": "x"}}}
    with pytest.raises(SourceError, match="added_tokens_decoder has no token"):
        vocabulary.read(copy, said, {})


@pytest.mark.parametrize("path", ["../../elsewhere_Pooling", "/etc"])
def test_modules_lead_nowhere_else(pico: Callable[[str], Path], tmp_path: Path, path: str) -> None:
    copy = Path(shutil.copytree(pico("bert"), tmp_path / "bert"))
    modules = json.loads((copy / "modules.json").read_text())
    modules[1]["path"] = path
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(SourceError, match=r"modules\.json names .* leads out of the checkpoint's folder"):
        source.describe(str(copy))


def test_nothing_of_this_is_met_by_a_sound_checkpoint(copy: Path) -> None:
    wanted = load_file(copy / folder.SINGLE)
    assert source.describe(str(copy)).weights.infos.keys() == wanted.keys()
    assert issubclass(SourceError, InputError)
