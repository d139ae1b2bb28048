"""The picture of a clip: a textured ground and a figure that jump at every event, or cut there.

All motion is camera motion of the ground plus a counter-motion of the figure. Between events the
ground drifts by at most 0.5 pixels a second, below what MV Align counts as motion.
"""

import colorsys
import zlib

import cv2
import numpy as np
from scipy.special import ndtr

from vmas.corpus.spec import ClipSpec

SIGMA_S = 0.035  # standard deviation of a pulse's speed over time
DRIFT = 0.5  # pixels a second
MARGIN = 40


def render_frames(spec: ClipSpec) -> np.ndarray:
    """uint8 RGB [T,H,W,3] at `spec.fps`, T = seconds·fps. A function of the spec alone."""
    rng = np.random.default_rng([spec.seed, _number(spec.duplicate_of or spec.id), 7])
    n, size = round(spec.seconds * spec.fps), spec.size
    t = np.arange(n) / spec.fps
    if spec.static:
        ground, figure = _ground(rng, spec, 0), _figure(spec, size)
        one = _compose(ground, figure, _rgb(spec.palette[2]), np.zeros(2), np.zeros(2))
        return np.repeat(one[None], n, 0)
    shots = len(spec.video_events_s) + 1 if spec.cuts else 1
    grounds = [_ground(rng, spec, s) for s in range(min(shots, 4))]
    figure, colour = _figure(spec, size), _rgb(spec.palette[2])
    angle0, spin = rng.uniform(0, 2 * np.pi), rng.choice((-1.0, 1.0))
    home = rng.uniform(-0.12, 0.12, 2) * size
    drift = rng.uniform(-DRIFT, DRIFT, 2) / np.sqrt(2)
    frames = np.empty((n, size, size, 3), np.uint8)
    # A pulse is a smooth step: the integral of a Gaussian of speed, in alternating directions so it stays in view.
    steps = np.array([ndtr((t - e) / SIGMA_S) for e in spec.video_events_s]).reshape(-1, n)
    turns = angle0 + spin * (np.arange(len(spec.video_events_s)) * 2.4)
    places = 0.6 * spec.amount * np.stack([np.cos(turns), np.sin(turns)], 1)
    moves = np.diff(places, axis=0, prepend=np.zeros((1, 2)))  # from place to place on a circle: always in view
    for i in range(n):
        shot = int(np.searchsorted(spec.video_events_s, t[i], side="right")) if spec.cuts else 0
        jump = np.zeros(2) if spec.cuts or not len(moves) else steps[:, i] @ moves
        camera = jump + drift * t[i] + (_viewpoint(shot) if spec.cuts else 0.0)
        bounce = home - 0.6 * jump + (_viewpoint(shot + 5) * 0.6 if spec.cuts else 0.0)
        frames[i] = _compose(grounds[shot % len(grounds)], figure, colour, camera, bounce)
    return frames


def _number(name: str) -> int:
    """Stable number of a clip id."""
    return zlib.crc32(name.encode())


def _viewpoint(shot: int) -> np.ndarray:
    """Where the camera stands in shot number `shot`, pixels."""
    return np.random.default_rng([shot, 3]).uniform(-18, 18, 2)


def _rgb(hsv) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(*hsv)) * 255


def _noise(rng, size: int, scale: float) -> np.ndarray:
    """Smooth noise in [0,1] with features of about `scale` pixels."""
    small = max(3, int(size / scale))
    x = cv2.resize(rng.random((small, small)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip((x - x.min()) / (np.ptp(x) + 1e-6), 0, 1)


def _ground(rng, spec: ClipSpec, shot: int) -> np.ndarray:
    """A texture larger than the picture, so that the camera can move over it: uint8 [S,S,3]."""
    size = spec.size + 2 * MARGIN
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    period = rng.uniform(14, 24)
    kind = spec.texture
    if kind == "stripes":
        p = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * u / period))
    elif kind == "checks":
        p = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / period))
    elif kind == "waves":
        p = 0.5 + 0.5 * np.sin(2 * np.pi * (u + 5 * np.sin(2 * np.pi * v / (2.3 * period))) / period)
    elif kind == "blobs":
        p = (_noise(rng, size, period) > 0.5).astype(np.float32)
    elif kind == "shards":
        p = np.abs(((u / period) % 1) - ((v / (0.6 * period) + u / (2.7 * period)) % 1))
    elif kind == "rings":
        p = 0.5 + 0.5 * np.sin(2 * np.pi * np.hypot(x - size * 0.45, y - size * 0.55) / period)
    elif kind == "weave":
        p = 0.5 + 0.25 * np.sign(np.sin(2 * np.pi * u / period)) + 0.25 * np.sin(2 * np.pi * v / period)
    else:
        p = _noise(rng, size, 6)
    p = cv2.GaussianBlur(p.astype(np.float32), (0, 0), 0.8)
    shade = 0.8 + 0.4 * _noise(rng, size, 50)
    speck = 0.85 + 0.3 * _noise(rng, size, 5)  # fine structure everywhere, so that flow has something to hold
    dark, mid = _rgb(spec.palette[shot % 2]), _rgb(spec.palette[1 + shot % 2])
    colour = dark + (mid - dark) * p[..., None]
    return np.clip(colour * (shade * speck)[..., None], 0, 255).astype(np.uint8)


def _figure(spec: ClipSpec, size: int) -> np.ndarray:
    """Opacity [size,size] in [0,1] of the figure, centred."""
    canvas = np.zeros((size * 4, size * 4), np.uint8)
    c, r = size * 2, round(size * 4 * 0.17)
    if spec.figure == "disc":
        cv2.circle(canvas, (c, c), r, 255, -1)
    elif spec.figure == "ring":
        cv2.circle(canvas, (c, c), r, 255, r // 3)
    elif spec.figure == "square":
        cv2.rectangle(canvas, (c - r, c - r), (c + r, c + r), 255, -1)
    elif spec.figure == "cross":
        cv2.rectangle(canvas, (c - r, c - r // 3), (c + r, c + r // 3), 255, -1)
        cv2.rectangle(canvas, (c - r // 3, c - r), (c + r // 3, c + r), 255, -1)
    else:
        points = 3 if spec.figure == "triangle" else 10
        a = np.arange(points) * 2 * np.pi / points - np.pi / 2
        radius = np.where(np.arange(points) % 2, 0.45, 1.0) * r * 1.15 if points == 10 else np.full(points, r * 1.1)
        corners = np.stack([c + radius * np.cos(a), c + radius * np.sin(a)], 1).astype(np.int32)
        cv2.fillPoly(canvas, [corners], 255)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _compose(ground, figure, colour, camera, place) -> np.ndarray:
    """One picture uint8 [size,size,3]: the ground seen from `camera`, the figure `place` pixels off the centre."""
    size = len(figure)
    shift = np.array([[1, 0, MARGIN + camera[0]], [0, 1, MARGIN + camera[1]]], np.float32)
    picture = cv2.warpAffine(
        ground, shift, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    move = np.array([[1, 0, place[0]], [0, 1, place[1]]], np.float32)
    alpha = cv2.warpAffine(figure, move, (size, size))
    x, y, w, h = cv2.boundingRect((alpha > 0).astype(np.uint8))  # blending the whole picture would cost most
    part, a = picture[y : y + h, x : x + w], alpha[y : y + h, x : x + w, None]
    part[:] = (part * (1 - a) + colour * a).astype(np.uint8)
    return picture
