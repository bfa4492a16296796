"""The model's names over a checkpoint's, and importance back under the checkpoint's, on models with experts."""

import numpy as np
import pytest

from quantkit import heads, modules, source, walk
from quantkit.calibration import importance
from quantkit.calibration.corpus import Sequences
from quantkit.progress import silent

MODELS = ("mixtral", "qwen3_moe", "gpt_neox", "gpt2", "phi3", "gemma3", "falcon-new", "stablelm-12b")


@pytest.mark.parametrize("name", MODELS)
def test_the_walk_gives_the_model_s_own_logits(pico, name):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    snapshot = source.describe(str(pico(name)))
    tokens = np.random.default_rng(0).integers(3, 500, (3, 24)).astype(np.int32)
    model = AutoModelForCausalLM.from_pretrained(pico(name), dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    hidden = walk.walk(snapshot.config, snapshot.weights, tokens, threads=2)
    head = heads.project(snapshot.config, snapshot.weights, threads=1)
    found = np.stack([head(states) for states in hidden])
    assert np.allclose(found, wanted, atol=2e-4 * abs(wanted).max())


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_every_expert_s_input_is_seen_under_its_stored_name(pico, name):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    snapshot = source.describe(str(pico(name)))
    tokens = np.random.default_rng(0).integers(3, 500, (2, 24)).astype(np.int32)
    one, two = (
        importance.measure(snapshot.config, snapshot.weights, Sequences(tokens), threads=threads, progress=silent)
        for threads in (1, 2)
    )
    matrices = {key for key, info in snapshot.weights.infos.items() if len(info.shape) == 2 and ".layers." in key}
    assert one.keys() == matrices
    assert all(np.array_equal(one[key].squares, two[key].squares) for key in one)
    experts = [key for key in one if ".experts." in key]
    rows = sum(int(one[key].counts[0]) for key in experts)
    assert rows == 3 * 2 * tokens.size * 2  # three matrices, two layers, two experts for every token
    model = AutoModelForCausalLM.from_pretrained(pico(name), dtype=torch.float32).eval()
    seen = []
    block = model.model.layers[0].mlp
    block.register_forward_pre_hook(lambda _, given: seen.append(given[0].reshape(-1, 256)))
    with torch.no_grad():
        model(torch.from_numpy(tokens.astype(np.int64)))
        _, _, chosen = block.gate(seen[0])
    which = next(key for key in experts if ".layers.0." in key and ".experts.1." in key and one[key].squares.size == 256)
    mine = seen[0][(chosen == 1).any(-1)].numpy()
    assert one[which].counts[0] == len(mine)
    assert np.allclose(one[which].squares, np.square(mine).mean(0), rtol=1e-3)
    assert np.allclose(one[which].means, mine.mean(0), atol=1e-4)


def test_an_expert_that_no_token_reached_gets_what_the_others_saw(pico):
    snapshot = source.describe(str(pico("mixtral")))
    given = Sequences(np.array([[5, 6]], np.int32))
    seen = importance.measure(snapshot.config, snapshot.weights, given, threads=1, progress=silent)
    experts = {key: value for key, value in seen.items() if ".layers.0.block_sparse_moe.experts." in key and ".w2." in key}
    unseen = [value for value in experts.values() if value.counts[0] == 0]
    reached = [value.squares for value in experts.values() if value.counts[0]]
    assert unseen
    assert np.allclose(unseen[0].squares, np.mean(reached, 0), rtol=1e-5)


def test_fused_and_separate_experts_are_one_model(pico):
    snapshot = source.describe(str(pico("mixtral")))
    view = modules.view(snapshot.config, snapshot.weights)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    fused = view.read(name)
    assert fused.shape == view.infos[name].shape == (4, 1024, 256)
    stored = snapshot.weights.read("model.layers.1.block_sparse_moe.experts.2.w3.weight")
    assert np.array_equal(fused[2, 512:], stored)
