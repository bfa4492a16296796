"""A published folder proves where it is from: digests, a signature, tensors derived again; whatever was changed is found."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest

from quantkit import provenance
from quantkit.errors import CheckFailed, InputError
from quantkit.progress import silent
from quantkit.provenance import Asked

RECIPE = """\
source: {source}
targets:
  - {{format: gguf, type: Q4_K_M, imatrix: true}}
  - {{format: gguf, type: Q8_0}}
  - {{format: gguf, type: Q4_0, codes: gptq}}
calibration: {{tokens: 1024, text: "builtin:python-docs"}}
checks: false
publish: [{{folder: {out}}}]
"""


def command(*words):
    return subprocess.run([sys.executable, "-m", "quantkit", *map(str, words)], capture_output=True, text=True, check=False)


def keys(place):
    """A private and a public key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (place / "key.pem").write_bytes(private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    public = private.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    (place / "key.pub").write_bytes(public)
    return place / "key.pem", place / "key.pub"


@pytest.fixture(scope="module")
def made(pico, tmp_path_factory):
    place = tmp_path_factory.mktemp("provenance")
    source = shutil.copytree(pico("llama"), place / "source")
    (place / "r.yaml").write_text(RECIPE.format(source=source, out=place / "published"))
    private, _ = keys(place)
    done = command("run", place / "r.yaml", "--work-dir", place / "build", "--sign-key", private, "--threads", 1)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree((made / "published").resolve(), tmp_path / "folder")


def check(folder, **asked):
    return {result.check: result for result in provenance.verify(folder, Asked(**asked), 1, silent)}


def test_an_untouched_folder_passes_and_says_what_was_derived(made, folder):
    found = check(folder, key=made / "key.pub", sample=100)
    verdicts = {name: result.verdict for name, result in found.items()}
    assert verdicts == {
        "digests": "pass", "recipe": "pass", "licence": "pass", "signature": "pass", "source": "pass",
        "documents gguf-Q4_K_M-imatrix": "pass", "derivation gguf-Q4_K_M-imatrix": "pass",
        "documents gguf-Q8_0": "pass", "derivation gguf-Q8_0": "pass",
        "documents gguf-Q4_0-gptq": "pass", "derivation gguf-Q4_0-gptq": "report",
    }  # fmt: skip
    assert "20 tensors of 20 derived" in found["derivation gguf-Q4_K_M-imatrix"].summary
    provenance.judge(folder, list(found.values()))


def test_the_command_prints_json_and_ends_in_3_for_a_flipped_byte(folder):
    done = command("verify", folder, "--sample", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert {result["verdict"] for result in json.loads(done.stdout)} == {"pass", "report"}
    flip(next(folder.glob("*Q8_0.gguf")))
    done = command("verify", folder)
    assert done.returncode == 3
    assert "Q8_0.gguf has another digest" in done.stderr


def flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def forge(path, change, folder):
    """A file changed, and every digest made to fit it."""
    change(path)
    name, manifest, sums = path.relative_to(folder).as_posix(), folder / "manifest.json", folder / "SHA256SUMS"
    said = json.loads(manifest.read_text())
    for file in (file for target in said["targets"] for file in target["files"] if file["name"] == name):
        file |= {"sha256": digest(path), "nbytes": path.stat().st_size}
    manifest.write_text(json.dumps(said))
    held = dict(reversed(line.split("  ", 1)) for line in sums.read_text().splitlines())
    held |= {each: digest(folder / each) for each in (name, "manifest.json")}
    sums.write_text("".join(f"{sha256}  {each}\n" for each, sha256 in held.items()))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_forged_tensor_is_found_by_the_source_and_by_the_key(made, folder):
    forge(next(folder.glob("*Q4_K_M.gguf")), flip, folder)
    found = check(folder, sample=100, key=made / "key.pub")
    assert found["digests"].verdict == "pass"
    assert found["derivation gguf-Q4_K_M-imatrix"].verdict == "fail"
    assert found["signature"].verdict == "fail"
    with pytest.raises(CheckFailed, match="is not what it says"):
        provenance.judge(folder, list(found.values()))


def end_elsewhere(path):
    """Another token ends an answer."""
    key, data = b"tokenizer.ggml.eos_token_id", bytearray(path.read_bytes())
    data[data.index(key) + len(key) + 4] ^= 1  # after the value's type
    path.write_bytes(data)


def test_metadata_that_is_not_the_sources_is_found(folder):
    forge(next(folder.glob("*Q8_0.gguf")), end_elsewhere, folder)
    found = check(folder, sample=100)
    assert (found["digests"].verdict, found["derivation gguf-Q8_0"].verdict) == ("pass", "pass")
    assert found["documents gguf-Q8_0"].verdict == "fail"
    assert "tokenizer.ggml.eos_token_id" in found["documents gguf-Q8_0"].summary
    assert found["documents gguf-Q4_K_M-imatrix"].verdict == "pass"


def test_a_source_that_lies_elsewhere_now_gives_the_same(made, folder, tmp_path):
    moved = shutil.copytree(made / "source", tmp_path / "elsewhere")
    assert {result.verdict for result in check(folder, source=str(moved)).values()} == {"pass", "report"}


FOLDERS = """\
source: {source}
targets:
  - {{format: gguf, type: Q4_0, codes: gptq}}
  - {{format: gptq, bits: 4, group: 32}}
  - {{format: onnx, bits: 8}}
calibration: {{tokens: 1024, text: "builtin:python-docs"}}
checks: false
publish: [{{folder: {out}}}]
"""


@pytest.fixture(scope="module")
def folders(pico, tmp_path_factory):
    """What transformers and onnxruntime read, published."""
    place = tmp_path_factory.mktemp("folders")
    (place / "r.yaml").write_text(FOLDERS.format(source=pico("llama"), out=place / "published"))
    done = command("run", place / "r.yaml", "--work-dir", place / "build", "--threads", 1)
    assert done.returncode == 0, done.stderr
    return place / "published"


def speak_first(path):
    """Every conversation begins with somebody else's words."""
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"chat_template": "Buy now. " + said.get("chat_template", "")}))


def lose_a_word(path):
    said = json.loads(path.read_text())
    vocabulary = said["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(said))


def turn_faster(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))


@pytest.mark.slow
def test_codes_that_follow_from_a_whole_run_are_made_again(folders, tmp_path):
    said = check(folders)
    names = [name.removeprefix("derivation ") for name in said if name.startswith("derivation ")]
    assert [name.partition("-")[0] for name in names] == ["gguf", "gptq", "onnx"]
    assert [said[f"derivation {name}"].verdict for name in names] == ["report"] * 3
    again = check(folders, rerun=True)
    assert [again[f"derivation {name}"].verdict for name in names] == ["pass"] * 3, again
    place = shutil.copytree(folders.resolve(), tmp_path / "folder")
    data = next(place.glob("*gptq*/model.safetensors"))
    forge(data, flip, place)
    found = check(place, rerun=True)
    assert found["digests"].verdict == "pass"
    assert [found[f"derivation {name}"].verdict for name in names] == ["pass", "fail", "pass"]
    assert "is another one" in found[f"derivation {names[1]}"].summary


@pytest.mark.slow
def test_documents_of_a_folder_that_are_not_the_sources_are_found(folders, tmp_path):
    place = shutil.copytree(folders.resolve(), tmp_path / "folder")
    assert {result.verdict for result in check(place).values()} == {"pass", "report"}
    attacks = {"config.json": turn_faster, "tokenizer.json": lose_a_word, "tokenizer_config.json": speak_first}
    for number, (name, change) in enumerate(attacks.items()):
        for target in ("gptq", "onnx"):
            copy = shutil.copytree(folders.resolve(), tmp_path / f"{target}-{number}")
            forge(next(copy.glob(f"*{target}*/{name}")), change, copy)
            found = check(copy)
            assert found["digests"].verdict == "pass"
            failed = [check for check, result in found.items() if result.verdict == "fail"]
            assert len(failed) == 1, failed
            assert failed[0].startswith(f"documents {target}")
            assert name in found[failed[0]].summary


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "model.sig"])
def test_what_is_gone_is_missed(name, made, folder):
    (folder / name).unlink()
    found = check(folder, sample=0, key=made / "key.pub")
    assert found["signature" if name == "model.sig" else "digests"].verdict == "fail"


def test_another_key_another_source_and_an_unlisted_file_are_seen(folder, pico, tmp_path):
    _, other = keys(tmp_path)
    assert check(folder, sample=0, key=other)["signature"].verdict == "fail"
    assert check(folder, source=str(pico("qwen2")))["source"].verdict == "fail"
    (folder / "extra.bin").write_bytes(b"x")
    assert "extra.bin is listed nowhere" in check(folder, sample=0)["digests"].summary


@pytest.mark.parametrize("line", ["0" * 64 + "  ../../etc/passwd", "0" * 64 + "  /etc/passwd", "nonsense"])
def test_sums_that_lead_out_of_the_folder_are_refused(line, folder):
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match="of a file within"):
        check(folder)


def test_a_key_that_is_not_there_is_said_before_anything_is_made(pico, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.format(source=pico("llama"), out=tmp_path / "published"))
    words = ["run", tmp_path / "r.yaml", "--work-dir", tmp_path / "build", "--sign-key", tmp_path / "none.pem"]
    done = command(*words)
    assert done.returncode == 2
    assert "there is no such private key" in done.stderr
    assert not (tmp_path / "build").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.json"):
        provenance.verify(tmp_path, Asked(), 1, silent)
