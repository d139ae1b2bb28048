"""Table 5, the alignment ablation: the paper's three rows read literally, and named variants beside them.

A variant changes one thing of the row it starts from; what the paper leaves open is thereby shown, not chosen.
"""

from vmas.experiments.sweep import Condition

TARGET = "table5"
TITLE = "Table 5. Ablation of video-music alignment"
BASELINE = {"align": {"contrastive": False, "beat_weighting": False}}
CONTRASTIVE = {"align": {"contrastive": True, "beat_weighting": False, "temperature": 1.0}}
LITERAL = {"contrastive": True, "beat_weighting": True, "normalise": "count", "temperature": 1.0, "alpha": 0.05}


def _beat(**align) -> dict:
    return {"align": {**LITERAL, **align}}


CONDITIONS: tuple[Condition, ...] = (
    Condition("baseline", "Autoregressive baseline", BASELINE, "Autoregressive Baseline", published=True),
    Condition("contrastive", "+ contrastive", CONTRASTIVE, "+ Video-Music Contrastive", published=True),
    Condition("beats", "+ beat weighting (literal)", _beat(), "+ Video-Beat Alignment", published=True),
    Condition(
        "temperature", "+ contrastive, τ = .1", {"align": {**CONTRASTIVE["align"], "temperature": 0.1}}, about="eq. 2"
    ),
    Condition("normalised", "+ beat weighting over Σw", _beat(normalise="weight"), about="eq. 4 divided by Σw"),
    Condition(
        "mid",
        "+ beat weighting over Σw, mid frame",
        _beat(normalise="weight", flow_time="mid"),
        about="over Σw, and the flow put between its two frames",
    ),
    Condition("dilated", "+ beat weighting, dilated", _beat(place="dilated"), about="weight 1 on t±δ"),
    Condition("onset", "+ beat weighting on the onset", _beat(place="onset"), about="weight 1 where the music is"),
    Condition("beta", "+ beat weighting, β · mean weight", _beat(beta=0.025), about="β rescaled by the mean weight"),
    Condition("delta-2", "+ beat weighting, δ = 2", _beat(delta=2), about="eq. 3"),
    Condition("delta-10", "+ beat weighting, δ = 10", _beat(delta=10), about="eq. 3"),
    Condition("alpha-.25", "+ beat weighting, α = .25", _beat(alpha=0.25), about="eq. 3"),
    Condition("alpha-.5", "+ beat weighting, α = .5", _beat(alpha=0.5), about="eq. 3"),
    Condition("no-bias", "Autoregressive baseline, no time bias", {**BASELINE, "decoder": {"time_bias_s": None}}),
    Condition(
        "no-motion", "Autoregressive baseline, encoder not pretrained", {**BASELINE, "encoder": {"motion_steps": 0}}
    ),
)
PAPER = tuple(c.name for c in CONDITIONS if c.paper)
QUOTED = ("table5",)  # the paper's numbers beside ours
REFERENCE = "baseline"
EVERY_SEED = PAPER  # the paper's rows get every seed asked for, the variants the first three
VARIANT_SEEDS = 3
