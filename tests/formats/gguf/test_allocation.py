"""The choice of types for a size: against every combination on small cases, and its measure against the definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.codecs.gguf import codecs
from quantkit.formats.gguf import allocation
from quantkit.formats.gguf.allocation import Candidate, allocate
from quantkit.values import Importance

tensors = st.lists(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 10)), min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(tensors, st.integers(1, 200))
def test_within_the_budget_and_near_the_best(sizes, budget):
    given_ = {
        str(index): [Candidate(f"T{at}", nbytes, error) for at, (nbytes, error) in enumerate(one)]
        for index, one in enumerate(sizes)
    }
    combinations = [
        combination for combination in itertools.product(*given_.values()) if sum(one.nbytes for one in combination) <= budget
    ]
    chosen = allocate(given_, budget)
    if not combinations:
        assert chosen is None
        return
    assert chosen is not None
    assert chosen.keys() == given_.keys()
    assert sum(one.nbytes for one in chosen.values()) <= budget
    best = min(sum(one.error for one in combination) for combination in combinations)
    # a Lagrange multiplier errs by at most one tensor's step, and the greedy fill lowers that
    slack = max(max(one.error for one in group) - min(one.error for one in group) for group in given_.values())
    assert sum(one.error for one in chosen.values()) <= best + slack + 1e-9
    for name, have in chosen.items():  # nothing that would fit and help is left
        room = budget - sum(one.nbytes for one in chosen.values())
        assert not any(0 < one.nbytes - have.nbytes <= room and one.error < have.error for one in given_[name])


def test_more_room_is_never_worse():
    dice = np.random.default_rng(0)
    given_ = {
        f"t{index}": [Candidate(kind, size * 100, float(error)) for kind, size, error in
                      zip("abcd", (2, 3, 4, 8), sorted(dice.random(4))[::-1], strict=True)]
        for index in range(60)
    }  # fmt: skip
    errors, sizes = [], []
    for budget in range(12_500, 48_000, 500):
        chosen = allocate(given_, budget)
        assert chosen is not None
        errors.append(sum(one.error for one in chosen.values()))
        sizes.append(sum(one.nbytes for one in chosen.values()))
        assert budget * 0.99 <= sizes[-1] <= budget or sizes[-1] == 60 * 800
    assert all(after <= before + 0.05 for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("kind", ["Q4_K", "IQ4_NL", "Q8_0"])
def test_the_error_is_that_of_the_outputs(kind):
    dice = np.random.default_rng(1)
    inputs = dice.standard_normal((400, 256)) * dice.uniform(0.1, 3, 256) + dice.standard_normal(256)
    squares, means = np.square(inputs).mean(0).astype(np.float32), inputs.mean(0).astype(np.float32)
    rows = (0.02 * dice.standard_normal((64, 256))).astype(np.float32)
    importance = Importance(squares, means, np.array([400]))
    decoded = codecs()[kind].decode(codecs()[kind].encode(rows, squares, means))
    truth = np.square(inputs @ (rows - decoded).T).sum() / np.square(inputs @ rows.T).sum()
    assert allocation.relative_error(rows, importance, kind) == pytest.approx(truth, rel=0.25)
    plain = allocation.relative_error(rows, None, kind)
    decoded = codecs()[kind].decode(codecs()[kind].encode(rows, None))
    assert plain == pytest.approx(np.square(rows - decoded).sum() / np.square(rows).sum(), rel=1e-5)


def test_the_sample_is_spread_and_repeats():
    assert allocation.sample(10, 4096) == list(range(10))
    rows = allocation.sample(32000, 4096)
    assert rows == allocation.sample(32000, 4096)
    assert (rows[0], rows[-1], len(rows)) == (0, 31999, 32)
