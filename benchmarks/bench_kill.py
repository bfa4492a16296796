"""What is left of a run that is killed: SIGKILL at random moments of a recipe with three formats, run again until it ends.

The same recipe is first run undisturbed. Then its process group is killed again and again, at moments drawn from the time
that the undisturbed run took; a run that ends in between starts over in an empty folder. After every kill each file with its
final name is held against its final digest, and the published folder, where there is one, against its SHA256SUMS; at each end
the digests of all artefacts against the undisturbed run's, and the journal is searched for steps that were finished twice.

    python benchmarks/bench_kill.py [--quick] [--kills 30] [--seed 0] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from models import SMOLLM2

from quantkit import workspace
from quantkit.manifest import Manifest

NAME = "three"
RECIPE = """\
source: {source}
targets:
  - {{format: gguf, type: Q4_K_M, imatrix: true}}
  - {{format: gptq, bits: 4, group: 64}}
  - {{format: onnx, bits: 8}}
calibration: {{tokens: 4096, text: "builtin:python-docs"}}
checks:
  perplexity: {{chunks: 2, max_ratio: 2.0}}
  divergence: {{max_mean: 1.0}}
  latency: {{rounds: 1, prompt: 32, decode: 8}}
prompts: ["Hello"]
publish: [{{folder: {published}}}]
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run after the other is at work."""

    folder: Path

    @property
    def build(self) -> Path:
        return self.folder / "build" / NAME

    @property
    def published(self) -> Path:
        return self.folder / "published"

    def begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        text = RECIPE.format(source=SMOLLM2, published=self.published)
        (self.folder / f"{NAME}.yaml").write_text(text, encoding="utf-8")

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "quantkit", "run", f"{NAME}.yaml", "--work-dir", "build"]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, cwd=self.folder, stdout=quiet, stderr=quiet, start_new_session=True)


def digests(place: Place) -> dict[str, str]:
    """Of every artefact's files, by name."""
    return {file.name: file.sha256 for file in Manifest.read(place.build / "manifest.json").files}


def half_written(place: Place, final: dict[str, str]) -> list[str]:
    """Files under their final names that are not whole."""
    found = [name for name in final if (place.build / name).is_file() and workspace.digest(place.build / name) != final[name]]
    sums = place.published / "SHA256SUMS"
    if place.published.exists():
        lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else [f"{'0' * 64}  SHA256SUMS"]
        for digest, _, name in (line.partition("  ") for line in lines):
            path = place.published / name
            if not path.is_file() or workspace.digest(path) != digest:
                found.append(f"published/{name}")
    return found


def repeated(place: Place) -> list[str]:
    """Steps that were finished more than once."""
    journal = place.build / workspace.JOURNAL
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []
    steps = Counter((step["step"], step["key"]) for step in map(json.loads, lines))
    return [name for (name, _), count in steps.items() if count > 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a third of the kills")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "bench-kill")
    given = parser.parse_args()
    wanted, dice = given.kills // 3 if given.quick else given.kills, random.Random(given.seed)

    place = Place(given.work / "undisturbed")
    place.begin()
    started = time.perf_counter()
    if place.start().wait() != 0:
        sys.exit(f"the undisturbed run failed; see {place.folder}")
    seconds, final = time.perf_counter() - started, digests(place)
    print(f"undisturbed: {seconds:.0f} s, {len(final)} files", file=sys.stderr)

    place = Place(given.work / "killed")
    place.begin()
    kills, ends, visible, again, same = 0, 0, list[str](), list[str](), True
    while True:
        child, moment = place.start(), dice.uniform(0.02, 0.35) * seconds if kills < wanted else None
        try:
            code = child.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
            visible += half_written(place, final)
            print(f"kill {kills} after {moment:.0f} s: {len(visible)} half-written so far", file=sys.stderr)
            continue
        if code != 0:
            sys.exit(f"a run after {kills} kills ended with {code}; see {place.folder}")
        ends += 1
        visible, again = visible + half_written(place, final), again + repeated(place)
        same = same and digests(place) == final
        if kills >= wanted:
            break
        place.begin()
    print(
        json.dumps(
            {
                "bench": "kill", "model": "smollm2", "kills": kills, "runs_ended": ends, "same_digests": same,
                "steps_repeated": len(again), "partial_visible": len(visible), "seconds_undisturbed": round(seconds, 1),
                "repeated": again, "visible": visible,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
