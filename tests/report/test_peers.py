"""Published figures: their order, and sizes at another model's parameters."""

from __future__ import annotations

import pytest

from quantkit.report import peers


def test_fewer_bits_diverge_more() -> None:
    bits = [peer.bits_per_weight for peer in peers.LLAMA_CPP]
    klds = [peer.kld for peer in peers.LLAMA_CPP]
    assert bits == sorted(bits, reverse=True)
    assert klds == sorted(klds)


def test_bits_are_those_of_the_types() -> None:
    found = {peer.type: peer.bits_per_weight for peer in peers.LLAMA_CPP}
    assert found["Q8_0"] == pytest.approx(8.5, abs=0.02)
    assert found["Q6_K"] == pytest.approx(6.56, abs=0.02)
    assert found["Q4_K_M"] == pytest.approx(4.9, abs=0.02)


def test_a_size_is_that_of_the_same_bits() -> None:
    peer = peers.LLAMA_CPP[0]
    assert peer.size(8_030_261_248) == pytest.approx(peer.nbytes)
    assert peer.size(1000) == pytest.approx(peer.bits_per_weight * 125)
