"""The house holds: a module imports only from lower layers, and stages never import each other."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "quantkit"

LAYERS = [
    {"values", "errors", "frozen", "places", "plugins", "version", "memory", "progress", "chat_template"},
    {"kernels", "arch", "checkpoint", "modules"},
    {"codecs"},
    {
        "walk",
        "skeleton",
        "heads",
        "staging",
        "matrices",
        "footprint",
        "footprint_onnx",
        "footprint_onnxruntime",
        "footprint_torch",
        "footprint_run",
    },
    {"targets", "destinations", "recipe", "recipe_file", "recipe_lock", "planning", "manifest", "workspace"},
    {"source", "calibration", "formats", "engines", "checks", "report", "publish"},
    {
        "pipeline",
        "job",
        "making",
        "peer_files",
        "fitting",
        "solving",
        "verification",
        "quality",
        "baseline",
        "estimates",
        "sealing",
        "doctor",
        "screen",
        "reopening",
        "calibrating",
        "serving",
        "likeness",
        "spill",
        "solved",
        "sensitivity",
        "publishing",
        "checked",
        "runs",
        "locking",
        "provenance",
        "inspecting",
        "costs",
        "ci",
        "comparing",
        "licensing",
        "requirements",
        "resident",
    },
    {"__init__"},
    {"cli"},
    {"__main__"},
]
STAGES = LAYERS[5]
LAZY = {"torch", "transformers", "onnx", "llama_cpp", "onnxruntime", "accelerate", "pyarrow", "model_signing"}


def area(module):
    """quantkit.formats.gguf.writer -> formats; quantkit itself -> __init__."""
    return module.split(".")[1] if "." in module else "__init__"


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts), ast.parse(path.read_text())


def imported(tree):
    """Names of the modules that any import statement of a tree may load."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            if node.module == "quantkit":
                yield from (f"quantkit.{alias.name}" for alias in node.names)


def height(name):
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def test_every_module_has_a_layer():
    assert {area(name) for name, _ in modules()} <= set().union(*LAYERS)


def test_modules_import_only_from_lower_layers():
    for name, tree in modules():
        here = area(name)
        for other in imported(tree):
            if not other.startswith("quantkit.") or area(other) == here:
                continue
            assert height(area(other)) <= height(here), f"{name} imports {other}, which lies above it"
            assert not (here in STAGES and area(other) in STAGES), f"stage {name} imports stage {other}"


def test_heavy_libraries_load_where_they_are_needed():
    for name, tree in modules():
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in top:
            loaded = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            assert not {str(other).split(".")[0] for other in loaded} & LAZY, f"{name} imports {loaded} when it is imported"
