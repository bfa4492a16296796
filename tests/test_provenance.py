"""A published folder proves where it is from: digests, a signature, tensors derived again; whatever was changed is found."""

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
        "derivation gguf-Q4_K_M-imatrix": "pass",
        "derivation gguf-Q8_0": "pass", "derivation gguf-Q4_0-gptq": "report",
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


def forge(folder):
    """A tensor changed, and every digest made to fit it."""
    import hashlib

    path = next(folder.glob("*Q4_K_M.gguf"))
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    flip(path)
    new = hashlib.sha256(path.read_bytes()).hexdigest()
    for name in ("manifest.json", "SHA256SUMS"):
        (folder / name).write_text((folder / name).read_text().replace(old, new))
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    said = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    lines = [f"{said}  manifest.json" if line.endswith("  manifest.json") else line for line in sums]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")


def test_a_forged_tensor_is_found_by_the_source_and_by_the_key(made, folder):
    forge(folder)
    found = check(folder, sample=100, key=made / "key.pub")
    assert found["digests"].verdict == "pass"
    assert found["derivation gguf-Q4_K_M-imatrix"].verdict == "fail"
    assert found["signature"].verdict == "fail"
    with pytest.raises(CheckFailed, match="is not what it says"):
        provenance.judge(folder, list(found.values()))


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
    with pytest.raises(InputError, match="is no digest of a file within"):
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
