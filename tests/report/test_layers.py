"""Errors by role and block, under the names of every format."""

from __future__ import annotations

import pytest
from report.sample_manifest import sample

from quantkit.manifest import TargetRecord
from quantkit.report import layers


def target(**errors: float) -> TargetRecord:
    first = sample().targets[0]
    row = first.tensors[0]
    tensors = [
        row.model_copy(update={"name": name.replace("__", "."), "relative_error": error}) for name, error in errors.items()
    ]
    return first.model_copy(update={"tensors": tensors})


def test_roles_are_in_the_order_of_the_file_and_norms_are_left_out() -> None:
    found = layers.errors(
        target(
            token_embd__weight=0.1, blk__0__ffn_up__weight=0.2, blk__0__attn_norm__weight=0.0, blk__0__attn_q__weight=0.1,
            blk__1__ffn_up__weight=0.4,
        )
    )  # fmt: skip
    assert list(found) == [("ffn_up", 0), ("attn_q", 0), ("ffn_up", 1)]
    worst, other = layers.roles(found)
    assert (worst.role, worst.mean, worst.greatest, worst.block) == ("ffn_up", pytest.approx(0.3), 0.4, 1)
    assert other.role == "attn_q"


def test_names_of_the_checkpoint_and_of_experts() -> None:
    found = layers.errors(
        target(
            model__layers__3__self_attn__q_proj__weight=0.1,
            model__layers__3__mlp__experts__0__up_proj__weight=0.2,
            model__layers__3__mlp__experts__1__up_proj__weight=0.3,
            lm_head__weight=0.4,
        )
    )
    assert found == {("self_attn.q_proj", 3): 0.1, ("mlp.experts.*.up_proj", 3): 0.3}


def test_encoder_and_decoder_are_told_apart() -> None:
    found = layers.errors(target(enc__blk__0__attn_q__weight=0.1, dec__blk__0__attn_q__weight=0.2))
    assert found == {("enc: attn_q", 0): 0.1, ("dec: attn_q", 0): 0.2}
