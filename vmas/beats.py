"""Video beats, music beats and the importance weights of eq. 3 (section 4.4, figure 2).

Everything lives on the codec's token grid: token t stands for the time t / frame_rate (50 Hz in the
paper), and every list of indices or vector here counts tokens. The paper leaves several choices
open; each is a named option, and `LITERAL` reads the paper word by word where the defaults mend a
case that it does not treat. This module needs numpy and scipy, and librosa for the onsets.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from vmas import compiled
from vmas.errors import DataError, UsageError

if TYPE_CHECKING:
    from vmas.config import AlignConfig

N_FFT = 2048
PLACES = ("video", "onset", "dilated")


@dataclass(frozen=True)
class BeatOptions:
    """The open choices of eq. 3. Defaults are this project's; see `LITERAL` for the paper's words.

    delta            δ in tokens: 5 is one frame at 9.6 fps. The paper gives neither value nor unit.
    match_delta      δ of the match with the onsets; None = the same δ.
    alpha            α, the weight where no beats meet (appendix B: 0.05).
    require_positive O[t] must exceed the window's minimum and `threshold`; else O = 0 is all maxima.
    threshold        smallest flow magnitude of a beat, exclusive, pixels per frame.
    plateau          "first" index of a run of equal maxima, or "all"; None = "first" with the guard
                     `require_positive`, "all" without it.
    inclusive        the window is [t-δ, t+δ]; False reads O[t-δ : t+δ] as a half-open slice.
    flow_time        time of the flow from frame i to i+1: "end" (i+1)/fps or "mid" (i+0.5)/fps.
    interpolation    "time" on real times, or "stretch" (what `F.interpolate` does; drifts by ±52 ms).
    place            where the weight 1 sits, see `beat_weights`.
    lead             tokens by which all weights are moved earlier (the paper: 0). Left out of the repr, which is
                     part of keys made before it was there.
    """

    delta: int = 5
    match_delta: int | None = None
    alpha: float = 0.05
    require_positive: bool = True
    threshold: float = 0.0
    plateau: str | None = None
    inclusive: bool = True
    flow_time: str = "end"
    interpolation: str = "time"
    place: str = "video"
    lead: int = field(default=0, repr=False)

    @classmethod
    def from_config(cls, align: "AlignConfig") -> "BeatOptions":
        """The options that a profile fixes; the others keep their defaults."""
        return cls(
            delta=align.delta,
            alpha=align.alpha,
            require_positive=align.require_positive,
            flow_time=align.flow_time,
            place=align.place,
            lead=align.lead,
        )

    def but(self, **changes) -> "BeatOptions":
        """A copy with some options changed (for sweeps)."""
        return replace(self, **changes)


LITERAL = BeatOptions(require_positive=False, plateau="all")


@dataclass(frozen=True)
class BeatAlignment:
    """All steps of figure 2 for one clip or a batch: O float32, P_v and P_a bool, P_av float32, each [..., t_a]."""

    O: np.ndarray
    P_v: np.ndarray
    P_a: np.ndarray
    P_av: np.ndarray


def audio_onsets(wav: np.ndarray, sample_rate: int = 32000, hop: int = 640, n_fft: int = N_FFT) -> np.ndarray:
    """Music beats as token indices, int64 [n], rising (section 4.4: off-the-shelf onset detection).

    `wav` is float [N] or [1,N]. librosa's spectral-flux onsets; `hop` goes to the strength AND to the
    detection, so that one onset frame is one token. Silence has none.
    Raises DataError for an empty, multi-channel or non-finite waveform.
    """
    import warnings

    librosa = compiled.librosa()

    wav = _mono(wav)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_fft=.* is too large")
        strength = librosa.onset.onset_strength(y=wav, sr=sample_rate, hop_length=hop, n_fft=n_fft)
    return librosa.onset.onset_detect(onset_envelope=strength, sr=sample_rate, hop_length=hop).astype(np.int64)


def onset_vector(wav: np.ndarray, sample_rate: int, hop: int, num_tokens: int, n_fft: int = N_FFT) -> np.ndarray:
    """P_a bool [t_a]: True at the tokens of `audio_onsets`; an onset beyond the last token is dropped."""
    P_a = np.zeros(num_tokens, bool)
    onsets = audio_onsets(wav, sample_rate, hop, n_fft)
    P_a[onsets[onsets < num_tokens]] = True
    return P_a


def flow_to_grid(
    flow: np.ndarray,
    fps: float,
    num_tokens: int,
    frame_rate: float = 50.0,
    flow_time: str = "end",
    interpolation: str = "time",
) -> np.ndarray:
    """O float32 [..., t_a]: flow magnitudes [..., t_v-1] linearly interpolated onto the token grid.

    `flow[i]` belongs to the frame pair (i, i+1) at `fps`. Before the first and after the last value
    the nearest one holds. Raises DataError for an empty or non-finite flow.
    """
    flow = np.asarray(flow, np.float64)
    pairs = flow.shape[-1] if flow.ndim else 0
    if pairs == 0:
        raise DataError("optical flow is empty: a video beat needs at least two frames")
    if not np.isfinite(flow).all():
        raise DataError("optical flow holds NaN or infinite values; compute it again from the frames")
    if flow_time not in ("end", "mid"):
        raise UsageError(f"flow_time must be 'end' or 'mid', got {flow_time!r}")
    if interpolation == "time":
        at = np.arange(num_tokens) / frame_rate
        known = (np.arange(pairs) + (1.0 if flow_time == "end" else 0.5)) / fps
    elif interpolation == "stretch":
        at = (np.arange(num_tokens) + 0.5) * pairs / num_tokens - 0.5
        known = np.arange(pairs, dtype=np.float64)
    else:
        raise UsageError(f"interpolation must be 'time' or 'stretch', got {interpolation!r}")
    rows = [np.interp(at, known, row) for row in flow.reshape(-1, pairs)]
    return np.asarray(rows, np.float32).reshape(*flow.shape[:-1], num_tokens)


def video_beats(
    O: np.ndarray,
    delta: int,
    require_positive: bool = True,
    threshold: float = 0.0,
    plateau: str | None = None,
    inclusive: bool = True,
) -> np.ndarray:
    """P_v bool [..., t_a]: True where O[t] is the maximum of O[t-δ : t+δ] (section 4.4).

    The window is cut at the clip's ends. Options as in `BeatOptions`. `O` is [..., t_a].
    """
    O = np.asarray(O)
    delta = _whole(delta, "delta")
    plateau = plateau or ("first" if require_positive else "all")
    if plateau not in ("first", "all"):
        raise UsageError(f"plateau must be 'first' or 'all', got {plateau!r}")
    if O.dtype.kind != "f":
        O = O.astype(np.float64)
    after = delta if inclusive or delta == 0 else delta - 1
    P_v = O == _window(np.maximum, O, delta, after)
    if plateau == "first":
        # A run of equal neighbours that are all maxima is one beat, at the moment it is reached.
        repeated = (O[..., 1:] == O[..., :-1]) & P_v[..., :-1]
        P_v[..., 1:] &= ~repeated
    if require_positive:
        P_v &= (O > _window(np.minimum, O, delta, after)) & (O > threshold)
    return P_v


def beat_weights(
    P_v: np.ndarray, P_a: np.ndarray, delta: int, alpha: float = 0.05, place: str = "video", lead: int = 0
) -> np.ndarray:
    """P_av float32 [..., t_a] of eq. 3: 1 where video and music beats meet within δ tokens, α elsewhere.

    `place`: "video" puts the 1 on the video beat, as eq. 3 is written; "onset" on each music beat that
    has a video beat within δ; "dilated" on every token within δ of a matched video beat. `lead` then moves
    all of them so many tokens earlier; what falls off the start is lost.
    """
    P_v, P_a = np.asarray(P_v, bool), np.asarray(P_a, bool)
    delta = _whole(delta, "delta")
    if P_v.shape != P_a.shape:
        raise DataError(f"video beats {P_v.shape} and music beats {P_a.shape} are on different grids")
    if place not in PLACES:
        raise UsageError(f"place must be one of {', '.join(PLACES)}, got {place!r}")
    if place == "onset":
        hit = P_a & _dilate(P_v, delta)
    else:
        hit = P_v & _dilate(P_a, delta)
        hit = _dilate(hit, delta) if place == "dilated" else hit
    hit = earlier(hit, _whole(lead, "lead"))
    return np.where(hit, np.float32(1), np.float32(alpha))


def earlier(marks: np.ndarray, lead: int) -> np.ndarray:
    """bool `marks` [..., t_a] moved `lead` tokens earlier; what falls off the start is lost."""
    lead = min(lead, marks.shape[-1])
    return np.concatenate([marks[..., lead:], np.zeros_like(marks[..., :lead])], axis=-1)


def align(
    flow: np.ndarray, P_a: np.ndarray, fps: float, frame_rate: float = 50.0, options: BeatOptions | None = None
) -> BeatAlignment:
    """Eq. 3 from flow magnitudes [..., t_v-1] and music beats P_a bool [..., t_a], with every step kept."""
    o = options or BeatOptions()
    P_a = np.asarray(P_a, bool)
    O = flow_to_grid(flow, fps, P_a.shape[-1], frame_rate, o.flow_time, o.interpolation)
    P_v = video_beats(O, o.delta, o.require_positive, o.threshold, o.plateau, o.inclusive)
    P_av = beat_weights(P_v, P_a, o.delta if o.match_delta is None else o.match_delta, o.alpha, o.place, o.lead)
    return BeatAlignment(O, P_v, P_a, P_av)


def _mono(wav: np.ndarray) -> np.ndarray:
    wav = np.asarray(wav, np.float32)
    if wav.ndim == 2 and wav.shape[0] == 1:
        wav = wav[0]
    if wav.ndim != 1:
        raise DataError(f"onset detection takes one channel, got a waveform of shape {wav.shape}")
    if wav.size == 0:
        raise DataError("onset detection got an empty waveform")
    if not np.isfinite(wav).all():
        raise DataError("the waveform holds NaN or infinite samples; decode or generate it again")
    return wav


def _whole(value: int, name: str) -> int:
    if int(value) != value or value < 0:
        raise UsageError(f"{name} must be a whole number of tokens, 0 or more, got {value!r}")
    return int(value)


def _window(extremum: np.ufunc, x: np.ndarray, before: int, after: int) -> np.ndarray:
    """Extremum over x[t-before .. t+after], cut at the ends."""
    fill = -np.inf if extremum is np.maximum else np.inf
    pad = [(0, 0)] * (x.ndim - 1) + [(before, after)]
    padded = np.pad(x, pad, constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, before + after + 1, axis=-1)
    return extremum.reduce(windows, axis=-1)


def _dilate(x: np.ndarray, delta: int) -> np.ndarray:
    return _window(np.maximum, x.astype(np.float32), delta, delta) > 0
