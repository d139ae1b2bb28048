"""Versions of the stages. A number goes up when the stage's results change; records are keyed by them."""

STAGES: dict[str, int] = {
    "codec": 1,
    "encoder": 1,
    "decoder": 1,
    "sampling": 1,
    "beats": 1,
    "flow": 1,
    "fad": 1,
    "kl": 1,
    "mv_align": 1,
    "tagger": 1,
    "evaluation": 3,
    "training": 4,
    "filters": 1,
    "follow": 3,
    "fig2": 2,
    "damage": 2,
    "placement": 2,
    "genres": 1,
    "ideal": 1,
    "probe": 1,
}


def of(*names: str) -> dict[str, int]:
    """The versions of the named stages, with those of the corpus and its features. Raises KeyError when unknown."""
    from vmas.corpus import CORPUS_VERSION
    from vmas.features import FEATURES_VERSION

    return {"corpus": CORPUS_VERSION, "features": FEATURES_VERSION, **{n: STAGES[n] for n in names}}
