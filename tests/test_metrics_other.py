"""Retrieval, preference, frame similarity and the intervals of means."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from vmas.errors import DataError, UsageError
from vmas.metrics import intervals
from vmas.metrics.intervals import mean_ci, paired_difference, seeds_and_clips, stratified, summarise, wilson
from vmas.metrics.preference import preference
from vmas.metrics.retrieval import cosine_similarity, ranks, recall_at, retrieve
from vmas.metrics.similarity import frame_similarity, keep

GOLDEN_SIMILARITY = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.2, 0.7, 0.7]])


# Retrieval


def test_retrieval_golden():
    got = recall_at(GOLDEN_SIMILARITY, (1, 2))
    assert got.recall[1] == pytest.approx(1 / 3)
    assert got.ranks.tolist() == [1, 2, 2]
    assert got.recall[2] == 1
    assert (got.pool, got.chance[1], got.chance[2], got.median_rank) == (3, 1 / 3, 2 / 3, 2)


def test_constant_similarity_scores_nothing():
    assert recall_at(np.ones((20, 20)), (1, 5, 10)).recall == {1: 0, 5: 0, 10: 0}
    collapsed = np.full((20, 7), 0.3) * np.linspace(1, 2, 20)[:, None]  # one direction, other lengths
    assert retrieve(collapsed, collapsed).recall == {1: 0, 5: 0, 10: 0}


@given(hnp.arrays(np.int64, (6, 9), elements=st.integers(0, 4)))
def test_ranks_word_by_word(similarity):
    expected = [1 + sum(row[j] >= row[i] for j in range(9) if j != i) for i, row in enumerate(similarity)]
    assert ranks(similarity).tolist() == expected


def test_random_embeddings_meet_chance():
    rng = np.random.default_rng(0)
    got = retrieve(rng.standard_normal((800, 16)), rng.standard_normal((800, 16)), (10, 100))
    assert got.recall[100] == pytest.approx(got.chance[100], abs=0.04)
    own = rng.standard_normal((50, 8))
    assert retrieve(own, 3 * own, (1,)).recall[1] == 1


def test_more_candidates_than_queries():
    rng = np.random.default_rng(0)
    own = rng.standard_normal((10, 8))
    got = retrieve(own, np.concatenate([own, rng.standard_normal((90, 8))]), (1, 500))
    assert (got.pool, got.recall[1], got.chance[1], got.chance[500]) == (100, 1, 0.01, 1)


@pytest.mark.parametrize("similarity", [np.ones((3, 2)), np.ones(3), np.zeros((0, 0)), np.full((2, 2), np.nan)])
def test_broken_similarity(similarity):
    with pytest.raises(DataError):
        recall_at(similarity)


def test_broken_embeddings():
    with pytest.raises(DataError, match="zero"):
        cosine_similarity(np.zeros((2, 3)), np.ones((2, 3)))
    with pytest.raises(DataError, match="finite"):
        cosine_similarity(np.full((2, 3), np.inf), np.ones((2, 3)))


# Human preference


def test_three_ways_to_count_ties():
    got = preference(wins=60, losses=20, ties=20)
    assert (got.of_all.value, got.decisive.value, got.half_ties.value) == (0.6, 0.75, 0.7)
    assert (got.of_all.n, got.decisive.n) == (100, 80)
    for share in (got.of_all, got.decisive, got.half_ties):
        assert 0 <= share.lo < share.value < share.hi <= 1


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_swapping_the_systems_mirrors_the_shares(wins, losses, ties):
    one, other = preference(wins, losses, ties), preference(losses, wins, ties)
    if wins + losses:
        assert one.decisive.value + other.decisive.value == pytest.approx(1)
        assert one.decisive.lo + other.decisive.hi == pytest.approx(1)
    if wins + losses + ties:
        assert one.half_ties.value + other.half_ties.value == pytest.approx(1)
        assert one.half_ties.lo + other.half_ties.hi == pytest.approx(1)


def test_half_ties_lie_between_whole_ones():
    """The closed form for halves agrees with scipy's at its neighbours."""
    below, half, above = (wilson(k, 40) for k in (12, 12.5, 13))
    assert below[0] < half[0] < above[0]
    assert below[1] < half[1] < above[1]
    assert half[0] == pytest.approx((below[0] + above[0]) / 2, abs=1e-3)


def test_no_judgement_is_nan_and_broken_counts_are_refused():
    got = preference(0, 0, 5)
    assert math.isnan(got.decisive.value)
    assert math.isnan(got.decisive.lo)
    assert got.of_all.value == 0
    for counts in ((-1, 2, 3), (1.5, 2, 3)):
        with pytest.raises(DataError, match="wins"):
            preference(*counts)
    with pytest.raises(DataError, match="share"):
        wilson(5, 4)


# Frame similarity


@given(hnp.arrays(np.float64, (7, 5), elements=st.floats(0.1, 5)))
def test_closed_form_is_the_mean_over_pairs(features):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(7) for j in range(i + 1, 7)]
    assert frame_similarity(features) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_filter_keeps_what_changes():
    still = np.ones((5, 3))
    assert frame_similarity(still) == pytest.approx(1)
    assert not keep(still)
    assert frame_similarity(np.eye(4)) == pytest.approx(0)
    assert keep(np.eye(4))
    assert not keep(np.eye(4), threshold=0.0)


@pytest.mark.parametrize("features", [np.ones((1, 4)), np.ones(4), np.zeros((3, 4)), np.full((3, 4), np.nan)])
def test_broken_features(features):
    with pytest.raises(DataError):
        frame_similarity(features)


# Intervals


def test_interval_is_scipys_and_deterministic():
    x = np.random.default_rng(0).exponential(size=100)
    for method, scipys in intervals.METHODS.items():
        rng = np.random.default_rng(7)
        expected = stats.bootstrap(
            (x,), np.mean, n_resamples=500, batch=256, method=scipys, rng=rng
        ).confidence_interval
        assert mean_ci(x, seed=7, n=500, method=method) == pytest.approx((expected.low, expected.high))
    assert mean_ci(x, 1) == mean_ci(x, 1)
    assert mean_ci(x, 1) != mean_ci(x, 2)


def test_interval_covers_the_true_mean():
    rng = np.random.default_rng(0)
    hits = [lo <= 1 <= hi for lo, hi in (mean_ci(rng.exponential(size=80), s, 300) for s in range(200))]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_nan_is_left_out_and_counted():
    x = np.random.default_rng(0).random(50)
    dirty = np.insert(x, [3, 20, 49], np.nan)
    got = summarise(dirty, seed=1)
    assert (got.n, got.left_out) == (50, 3)
    assert got.mean == pytest.approx(x.mean())
    assert (got.lo, got.hi) == mean_ci(x, seed=1)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_degenerate_values(method):
    assert mean_ci([0.3] * 5, method=method) == (0.3, 0.3)
    assert mean_ci([0, 0, 0], method=method) == (0, 0)
    assert all(math.isnan(x) for x in mean_ci([], method=method))
    assert all(math.isnan(x) for x in mean_ci([0.3], method=method))
    assert summarise([0.3, np.nan], method=method).mean == 0.3
    assert math.isnan(summarise([np.nan, np.nan]).mean)
    lo, hi = mean_ci([0] * 10 + [1] * 10, method=method)
    assert 0.2 < lo < 0.5 < hi < 0.8
    with pytest.raises(DataError, match="infinite"):
        mean_ci([1.0, np.inf], method=method)


def test_paired_difference_sees_what_two_intervals_hide():
    rng = np.random.default_rng(0)
    clip = rng.normal(0, 5, 100)
    a, b = clip + 0.3 + rng.normal(0, 0.1, 100), clip.copy()
    b[4] = np.nan
    got = paired_difference(a, b)
    assert (got.n, got.left_out) == (99, 1)
    assert 0.2 < got.lo < got.hi < 0.4
    wide = mean_ci(a)
    assert wide[0] < b[~np.isnan(b)].mean() < wide[1]
    with pytest.raises(DataError, match="same clips"):
        paired_difference(a, b[:-1])


def test_stratified_counts_seeds_and_clips():
    rng = np.random.default_rng(0)
    clips = rng.normal(0, 1, 200)
    same = np.stack([clips] * 4)
    got = stratified(same, n=1000)
    assert got.mean == pytest.approx(clips.mean())
    assert (got.lo, got.hi) == pytest.approx(mean_ci(clips), abs=0.03)  # equal seeds add nothing
    moving = same + np.array([[-1], [-0.3], [0.3], [1]])
    wider = stratified(moving, n=1000)
    assert wider.hi - wider.lo > 2 * (got.hi - got.lo)
    assert stratified(moving, seed=5) == stratified(moving, seed=5)
    one = stratified(clips[None], n=1000)
    assert (one.lo, one.hi) == pytest.approx(mean_ci(clips), abs=0.03)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_stratified_holds_the_truth_as_often_as_it_says(seeds):
    rng = np.random.default_rng(seeds)
    held = []
    for i in range(200):
        clips, trainings = rng.normal(0, 0.1, 60), rng.normal(0, 0.05, (seeds, 1))
        ci = stratified(0.4 + clips + trainings + rng.normal(0, 0.05, (seeds, 60)), seed=i, n=400)
        held.append(ci.lo <= 0.4 <= ci.hi)
    assert 0.92 <= np.mean(held) <= 1  # 95% asked; drawing two seeds again and again gives 83%


def test_two_seeds_are_as_wide_as_students_t():
    x = np.array([[0.3], [0.5]]) + np.zeros(50)  # clips say nothing: what is left is t with one degree of freedom
    got = stratified(x, n=2000)
    want = stats.t.interval(0.95, 1, loc=0.4, scale=stats.sem([0.3, 0.5]))
    assert (got.lo, got.hi) == pytest.approx(want, rel=0.02)


def test_a_set_score_counts_seeds_and_clips():
    clips = np.array([[1.0, 4.0], [1.5, 4.5], [2.0, 5.0]])
    x = clips.mean(1) - 0.5  # one below its own interval's upper end by 2, above its lower end by 1
    lo, hi = seeds_and_clips(x, clips)
    t = stats.t.interval(0.95, 2, loc=x.mean(), scale=stats.sem(x))
    assert x.mean() - lo == pytest.approx(np.hypot(1, x.mean() - t[0]))
    assert hi - x.mean() == pytest.approx(np.hypot(2, t[1] - x.mean()))
    same = seeds_and_clips([2.0, 2.0], [[1.0, 4.0]] * 2)
    assert same == pytest.approx((1.0, 4.0)), "equal seeds do not make clips certain"
    assert seeds_and_clips([2.0], [[1.5, 2.5]]) == (1.5, 2.5)
    assert all(math.isnan(v) for v in seeds_and_clips([2.0, 3.0], [[np.nan] * 2] * 2))
    with pytest.raises(DataError, match="do not fit"):
        seeds_and_clips([1.0, 2.0], [[0.0, 1.0]])
    with pytest.raises(DataError, match="not a number"):
        seeds_and_clips([np.nan], [[0.0, 1.0]])


def test_stratified_with_missing_clips():
    x = np.random.default_rng(0).random((3, 40))
    x[0, :30] = np.nan
    got = stratified(x)
    assert got.mean == pytest.approx(np.mean([np.nanmean(r) for r in x]))
    assert (got.n, got.left_out) == (90, 30)
    assert got.lo < got.mean < got.hi
    x[0] = np.nan
    with pytest.raises(DataError, match="no valid clip"):
        stratified(x)
    with pytest.raises(DataError, match="seeds,clips"):
        stratified(np.zeros(4))


@settings(max_examples=20, deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(2, 30), elements=st.floats(-1e3, 1e3)), st.sampled_from(["percentile", "bca"])
)
def test_interval_lies_within_the_values(x, method):
    lo, hi = mean_ci(x, n=200, method=method)
    assert not math.isnan(lo)
    assert x.min() - 1e-9 <= lo <= hi <= x.max() + 1e-9


def test_unknown_method():
    with pytest.raises(UsageError, match="bca"):
        mean_ci([1.0, 2.0], method="t")
