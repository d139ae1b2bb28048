"""KL divergence between the tags of generated and of reference music (section 5.2).

The paper uses the music tagger of Won et al. 2021, whose 50 tags are independent sigmoids, and does
not say how they become a distribution. Each reading is a variant by name; the default takes the
softmax of the pre-sigmoid logits. Lower is better; clips are pairs (music made for the video, the
video's own music).
"""

from collections.abc import Callable

import numpy as np
from scipy.special import expit, log_expit, log_softmax

from vmas.errors import DataError, UsageError, nearest

EPS = 1e-6  # added to the probability in the denominator, as in audiocraft's KL metric


def _softmax_kl(gen: np.ndarray, ref: np.ndarray) -> np.ndarray:
    log_q, log_p = log_softmax(ref, axis=-1), log_softmax(gen, axis=-1)
    return _discrete(np.exp(log_q), np.exp(log_p), log_q)


def _bernoulli_sum(gen: np.ndarray, ref: np.ndarray) -> np.ndarray:
    q = expit(ref)
    yes = q * (log_expit(ref) - log_expit(gen))
    no = (1 - q) * (log_expit(-ref) - log_expit(-gen))
    return (yes + no).sum(axis=-1)


def _l1_sigmoid(gen: np.ndarray, ref: np.ndarray) -> np.ndarray:
    q, p = expit(ref), expit(gen)
    return _discrete(q / q.sum(axis=-1, keepdims=True), p / p.sum(axis=-1, keepdims=True))


def _discrete(q: np.ndarray, p: np.ndarray, log_q: np.ndarray | None = None) -> np.ndarray:
    if log_q is None:
        log_q = np.log(np.where(q > 0, q, 1))  # 0 ln 0 = 0
    return (q * (log_q - np.log(p + EPS))).sum(axis=-1)


# KL(ref ‖ gen) from logits [N,tags]; "softmax_reverse" is KL(gen ‖ ref).
VARIANTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "softmax": _softmax_kl,
    "softmax_reverse": lambda gen, ref: _softmax_kl(ref, gen),
    "bernoulli_sum": _bernoulli_sum,
    "l1_sigmoid": _l1_sigmoid,
}


def kl(gen_logits: np.ndarray, ref_logits: np.ndarray, variant: str = "softmax") -> np.ndarray:
    """KL of each pair, float64 [N], in nats; the metric is its mean.

    `gen_logits` and `ref_logits` are pre-sigmoid tagger outputs [N,tags], or [N,windows,tags], whose
    windows are averaged first. Raises DataError for other shapes or non-finite logits, UsageError for
    an unknown variant.
    """
    if variant not in VARIANTS:
        raise UsageError(f"unknown KL variant {variant!r}: {nearest(variant, VARIANTS)}")
    gen, ref = _clips(gen_logits, "generated"), _clips(ref_logits, "reference")
    if gen.shape != ref.shape:
        raise DataError(f"KL compares pairs: generated {list(gen.shape)} and reference {list(ref.shape)} differ")
    return VARIANTS[variant](gen, ref)


def kl_probabilities(gen: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """KL(ref ‖ gen) of each pair, float64 [N], from class probabilities [N,classes] (rows sum to 1).

    For a softmax classifier such as Leaf's (Table 4), whose weights are not public.
    """
    gen, ref = np.asarray(gen, np.float64), np.asarray(ref, np.float64)
    if gen.shape != ref.shape or gen.ndim != 2:
        raise DataError(f"KL compares pairs of [N,classes], got {list(gen.shape)} and {list(ref.shape)}")
    for side, p in (("generated", gen), ("reference", ref)):
        if not np.isfinite(p).all() or (p < 0).any() or (np.abs(p.sum(axis=-1) - 1) > 1e-4).any():
            raise DataError(f"{side} rows are not probability distributions")
    return _discrete(ref, gen)


def classifier_kl(
    classifier: Callable[[np.ndarray], np.ndarray], gen_wavs: np.ndarray, ref_wavs: np.ndarray
) -> np.ndarray:
    """KL(ref ‖ gen) [N] under an injected classifier that maps waveforms [N,samples] to probabilities [N,classes]."""
    return kl_probabilities(classifier(gen_wavs), classifier(ref_wavs))


def _clips(logits: np.ndarray, side: str) -> np.ndarray:
    x = np.asarray(logits, np.float64)
    if x.ndim == 3 and x.shape[1]:
        x = x.mean(axis=1)
    if x.ndim != 2 or x.shape[1] == 0:
        raise DataError(f"{side} logits must be [N,tags] or [N,windows,tags], got {list(np.shape(logits))}")
    if not np.isfinite(x).all():
        raise DataError(f"{side} logits hold NaN or infinite values; the tagger failed on some clip")
    return x
