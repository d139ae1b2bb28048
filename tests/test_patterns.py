"""Delay pattern: golden numbers, parity with audiocraft over a grid, and that reverting undoes delaying."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmas import patterns

SPECIAL = 99


def test_golden_of_the_specification():
    codes = torch.arange(24).view(1, 4, 6)
    rows = patterns.delay(codes, SPECIAL, valid_only=True)[0].tolist()
    assert rows == [
        [99, 0, 1, 2, 3, 4, 5],
        [99, 99, 6, 7, 8, 9, 10],
        [99, 99, 99, 12, 13, 14, 15],
        [99, 99, 99, 99, 18, 19, 20],
    ]
    full = patterns.delay(codes, SPECIAL)
    assert full.shape == (1, 4, 10)
    assert full[0, 3].tolist() == [99, 99, 99, 99, 18, 19, 20, 21, 22, 23]
    assert (full[:, :, 0] == SPECIAL).all()


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 20),
    delays=st.lists(st.integers(0, 6), min_size=1, max_size=6).map(sorted),
    seed=st.integers(0, 1000),
)
def test_reverting_undoes_delaying(B, T, delays, seed):
    K = len(delays)
    codes = torch.randint(0, 50, (B, K, T), generator=torch.Generator().manual_seed(seed))
    seq = patterns.delay(codes, SPECIAL, delays)
    assert seq.shape == (B, K, patterns.length(T, K, delays))
    assert (seq == SPECIAL).sum() == seq.numel() - codes.numel()
    assert torch.equal(patterns.revert(seq, T, delays), codes)


def test_logits_come_back_under_their_own_code():
    """A decoder that copies its target must have the target as argmax wherever the mask is True."""
    card, T = 7, 5
    codes = torch.randint(0, card, (2, 4, T), generator=torch.Generator().manual_seed(0))
    seq = patterns.delay(codes, card)
    ideal = torch.nn.functional.one_hot(seq[..., 1:], card + 1)[..., :card].float()
    logits, mask = patterns.revert_logits(ideal, T)
    assert mask.shape == (4, T)
    assert mask.all()
    assert torch.equal(logits.argmax(-1), codes)


def test_short_output_is_masked_and_finite():
    logits = torch.randn(1, 4, 6, 3, generator=torch.Generator().manual_seed(0))
    out, mask = patterns.revert_logits(logits, 6)
    assert mask.sum(1).tolist() == [6, 5, 4, 3]
    assert torch.isfinite(out).all()
    assert (out[:, ~mask] == 0).all()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="ascending"):
        patterns.delay(torch.zeros(1, 2, 3, dtype=torch.long), 9, delays=[1, 0])
    with pytest.raises(ValueError, match="2 non-negative numbers"):
        patterns.delay(torch.zeros(1, 2, 3, dtype=torch.long), 9, delays=[0, 1, 2])
    with pytest.raises(ValueError, match="need 5 columns, got 4"):
        patterns.revert(torch.zeros(1, 2, 4, dtype=torch.long), 3)


@pytest.mark.slow
@pytest.mark.parametrize("K", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["default", "wide", "equal", "late"])
def test_parity_with_audiocraft(K, kind):
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider

    delays = {
        "default": None,
        "wide": [2 * k for k in range(K)],
        "equal": [0] * K,
        "late": [0] + [3] * (K - 1),
    }[kind]
    g = torch.Generator().manual_seed(K)
    for T in (1, 2, 3, 5, 16, 50):
        codes = torch.randint(0, 32, (2, K, T), generator=g)
        pattern = DelayedPatternProvider(K, delays).get_pattern(T)
        for valid in (False, True):
            theirs, _, _ = pattern.build_pattern_sequence(codes, SPECIAL, keep_only_valid_steps=valid)
            ours = patterns.delay(codes, SPECIAL, delays, valid_only=valid)
            assert torch.equal(ours, theirs), (T, valid)
            back, _, _ = pattern.revert_pattern_sequence(theirs, SPECIAL, keep_only_valid_steps=valid)
            assert torch.equal(patterns.revert(ours, T, delays, special=SPECIAL), back)

            logits = torch.randn(2, K, ours.shape[-1], 5, generator=g)
            ref, _, ref_mask = pattern.revert_pattern_logits(
                logits.permute(0, 3, 1, 2), float("nan"), keep_only_valid_steps=valid
            )
            # The output on the last column predicts nothing that the layout holds; audiocraft skips it.
            got, mask = patterns.revert_logits(logits[:, :, :-1], T, delays)
            assert torch.equal(mask, ref_mask)
            assert torch.equal(got[:, mask], ref.permute(0, 2, 3, 1)[:, mask])
