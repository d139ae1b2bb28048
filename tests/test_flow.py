"""Flow estimators behind one interface, their cache, and clear errors."""

from itertools import pairwise

import numpy as np
import pytest

from vmas import flow, paths
from vmas.errors import DataError, UsageError, WeightsUnavailable
from vmas.flow import RAFTFlow, cache_path, flow_magnitude


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    monkeypatch.delenv("VMAS_WEIGHTS", raising=False)
    flow.build_estimator.cache_clear()


@pytest.fixture(scope="module")
def moving():
    """A texture that moves by (dx, dy) = (2, 1) pixels a frame."""
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    scene = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)
    return np.stack([scene[i : i + 64, 2 * i : 2 * i + 64] for i in range(8)])


@pytest.mark.parametrize("method", ["farneback", "dis"])
def test_known_motion(moving, method):
    got = flow_magnitude(moving, method, cache=False)
    assert got.dtype == np.float32
    assert got.shape == (7,)
    np.testing.assert_allclose(got, 5**0.5, rtol=0.15)
    np.testing.assert_array_equal(got, flow_magnitude(moving, method, cache=False))


def test_farneback_is_the_reference_of_mv_align(moving):
    import cv2

    grey = [cv2.cvtColor(f[..., ::-1].copy(), cv2.COLOR_BGR2GRAY) for f in moving]
    expected = []
    for a, b in pairwise(grey):
        f = cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        expected.append(np.sqrt((f**2).sum(-1)).mean())
    np.testing.assert_allclose(flow_magnitude(moving, cache=False), expected, rtol=1e-5)


def test_a_still_video_does_not_move(moving):
    still = np.repeat(moving[:1], 4, axis=0)
    for method in ("farneback", "dis"):
        assert flow_magnitude(still, method, cache=False).max() < 1e-2


def test_size_halves_the_motion_and_keeps_the_aspect(moving):
    half = flow_magnitude(moving, "dis", size=32, cache=False)
    np.testing.assert_allclose(half, 5**0.5 / 2, rtol=0.25)
    assert flow._resize(np.zeros((2, 40, 80, 3), np.uint8), 20).shape == (2, 20, 40, 3)


def test_repeatable_flow_is_farnebacks_wherever_the_frames_lie(moving):
    got = flow.repeatable(moving)
    np.testing.assert_allclose(got, flow_magnitude(moving, cache=False), rtol=1e-6)
    for offset in (1, 4, 24):  # another address, another choice of instructions
        held = np.zeros(moving.size + 64, np.uint8)[offset : offset + moving.size].reshape(moving.shape)
        held[:] = moving
        np.testing.assert_array_equal(flow.repeatable(held), got)


def test_threads_are_left_as_they_were(moving):
    import cv2

    before = cv2.getNumThreads()
    flow_magnitude(moving, cache=False)
    assert cv2.getNumThreads() == before


def test_cache_is_read_and_is_exact(moving, monkeypatch):
    first = flow_magnitude(moving, "dis")
    kept = cache_path(moving, "dis-1", None)
    assert kept.is_file()
    assert paths.cache() / "flow" in kept.parents
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]  # nothing left beside it
    monkeypatch.setattr(flow.DISFlow, "__call__", lambda self, frames: pytest.fail("computed again"))
    np.testing.assert_array_equal(flow_magnitude(moving, "dis"), first)


def test_cache_key_holds_all_inputs(moving):
    keys = {
        cache_path(moving, "dis-1", None),
        cache_path(moving, "dis-1", 32),
        cache_path(moving, "farneback-1", None),
        cache_path(moving[:-1], "dis-1", None),
        cache_path(moving.reshape(8, 32, 128, 3), "dis-1", None),
        cache_path(moving[::-1], "dis-1", None),
    }
    assert len(keys) == 6


@pytest.mark.parametrize("damage", [b"", b"not an array", b"\x93NUMPY"])
def test_a_damaged_cache_is_made_again(moving, damage):
    first = flow_magnitude(moving, "dis")
    kept = cache_path(moving, "dis-1", None)
    kept.write_bytes(damage)
    np.testing.assert_array_equal(flow_magnitude(moving, "dis"), first)
    np.testing.assert_array_equal(np.load(kept), first)


@pytest.fixture(scope="module")
def random_raft():
    import torch
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    return raft_small(weights=None).eval()


def test_raft_interface_with_random_weights(moving, random_raft):
    import torch
    import torch.nn.functional as F

    estimator = RAFTFlow(random_raft, key="random", batch_size=2, updates=2)
    got = flow_magnitude(moving[:4], estimator)
    assert got.shape == (3,)
    assert cache_path(moving[:4], "random-2", None).is_file()
    # [-1,1], sides of at least 128, back to pixels of the 64x64 frames
    x = torch.from_numpy(moving[:4]).permute(0, 3, 1, 2) / 127.5 - 1
    x = F.interpolate(x, (128, 128), mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = random_raft(x[:-1], x[1:], num_flow_updates=2)[-1].norm(dim=1).mean((1, 2)) / 2
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4)


def test_raft_takes_sides_that_are_no_multiple_of_eight(random_raft):
    frames = np.random.default_rng(0).integers(0, 256, (2, 130, 141, 3), dtype=np.uint8)
    assert np.isfinite(flow_magnitude(frames, RAFTFlow(random_raft, key="random", updates=1), cache=False)).all()


def test_raft_without_weights_says_what_is_missing(moving):
    with pytest.raises(
        WeightsUnavailable, match=r"raft_large_C_T_SKHT_V2-ff5fadd5\.pth.*download\.pytorch\.org.*BSD-3"
    ):
        flow_magnitude(moving, "raft")


def test_injected_raft_needs_a_key(random_raft):
    with pytest.raises(UsageError, match="key"):
        RAFTFlow(random_raft)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((3, 8, 8, 3), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((3, 8, 0, 3), np.uint8),
    ],
)
def test_broken_frames(frames):
    with pytest.raises(DataError, match="uint8"):
        flow_magnitude(frames)


def test_edges():
    assert flow_magnitude(np.zeros((1, 8, 8, 3), np.uint8)).shape == (0,)
    assert flow_magnitude(np.zeros((2, 1, 1, 3), np.uint8)).tolist() == [0]
    with pytest.raises(DataError, match="12 pixels"):
        flow_magnitude(np.zeros((2, 8, 8, 3), np.uint8), "dis")
    with pytest.raises(UsageError, match="did you mean farneback"):
        flow_magnitude(np.zeros((2, 8, 8, 3), np.uint8), "farnebeck")
    with pytest.raises(UsageError, match="size"):
        flow_magnitude(np.zeros((2, 8, 8, 3), np.uint8), size=0)
