"""What a picture of the corpus tells of its genre: Bayes' rule over the knobs that the clips are drawn with.

Colours, texture (with the figure on it) and tempo each come from the genre or, with probability `genre_mix`, from one
of its neighbours, on their own; nothing else that is seen depends on the genre. So the posterior is exact for one who
reads off the picture what is true of it. No eye sees more; a trained encoder sees less.
"""

import numpy as np
from scipy import special

from vmas.config import CorpusConfig
from vmas.corpus.genres import GENRES, NEIGHBOURS, TABLE, Genre
from vmas.corpus.spec import HUE_SD, SATURATION_SD, SATURATIONS, VALUE_SD, VALUE_STEPS, VALUES, ClipSpec
from vmas.errors import DataError

STEP = 1e-4  # colours are rounded to it


def genre_posterior(spec: ClipSpec, cfg: CorpusConfig) -> np.ndarray:
    """P(genre | picture) [10] in the order of GENRES, by its true colours, texture and tempo.

    Raises DataError for a clip of the shifted style, whose pictures no training clip explains, for one whose music is
    another's, and for one that stands still and so shows no tempo.
    """
    if spec.split == "shifted" or spec.mismatched or spec.static or spec.near_static:
        raise DataError(f"{spec.id}: the training clips' genres do not explain its picture")
    likelihood = np.ones(len(GENRES))
    for seen in (_tempo, _texture, _palette):
        by_source = {g: seen(spec, TABLE[g]) for g in GENRES}
        near = [np.mean([by_source[n] for n in NEIGHBOURS[g]]) for g in GENRES]
        own = np.array([by_source[g] for g in GENRES])
        likelihood *= (1 - cfg.genre_mix) * own + cfg.genre_mix * np.array(near)
    return likelihood / likelihood.sum()


def _tempo(spec: ClipSpec, genre: Genre) -> float:
    low, high = genre.tempo
    return float(low <= spec.tempo_bpm <= high) / (high - low)


def _texture(spec: ClipSpec, genre: Genre) -> float:
    return float((spec.texture, spec.figure) == (genre.texture, genre.figure))


def _palette(spec: ClipSpec, genre: Genre) -> float:
    """The density of three colours; where a value was cut off at an end, the probability of the cut."""
    total = 0.0
    for (hue, saturation, value), step in zip(spec.palette, VALUE_STEPS, strict=True):
        away = np.abs((hue - np.array(genre.hues) + 0.5) % 1.0 - 0.5)
        total += special.logsumexp(_log_normal(away, 0.0, HUE_SD)) - np.log(len(away))
        total += _cut(saturation, genre.saturation, SATURATION_SD, SATURATIONS)
        total += _cut(value, genre.value * step, VALUE_SD, VALUES)
    return float(np.exp(total))


def _cut(x: float, mean: float, sd: float, ends: tuple[float, float]) -> float:
    """Log density of a normal draw that was cut off at `ends`; the ends hold what lies beyond them, over STEP."""
    low, high = ends
    if x <= low + STEP / 2:
        return float(special.log_ndtr((low - mean) / sd) - np.log(STEP))
    if x >= high - STEP / 2:
        return float(special.log_ndtr((mean - high) / sd) - np.log(STEP))
    return float(_log_normal(x, mean, sd))


def _log_normal(x, mean: float, sd: float):
    """Log density of a normal distribution."""
    return -0.5 * (((x - mean) / sd) ** 2 + np.log(2 * np.pi)) - np.log(sd)
