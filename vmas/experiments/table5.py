"""Table 5, the alignment ablation: the paper's three rows read literally, and named variants beside them.

A variant changes one thing of the row it starts from; what the paper leaves open is thereby shown, not chosen. What
is about the weights themselves (place, δ, α) starts from eq. 4 divided by Σw: divided by the number of tokens, every
change of them also changes how much L_g weighs beside βL_c, and the two could not be told apart. The `lead` rows
change two things, the place and the time: they were added after `placement` had shown where the video helps. Every row
is compared with the baseline, a longer run with the row that it is a longer run of, and the contrast that can shape X_v
with the baseline whose encoder is trained alike: these two rows were added when `trained` had learnt nothing of the
picture, and before any run of theirs. `longer-music` asks what the quality of the music is short of; it shares no stage
1b with the row that it is compared with, which is what it changes. `longer-slow` and `longer-twice` were added when
`longer-music` was seen to be no better, and before their own runs. `longer-contrastive` asks whether the contrast does
to that decoder what it does to the other. `longer-fourfold` came after `longer-twice` had made the best music of all
rows, and asks how far more videos go. `longer-motion` came last: `ideal` had shown that a perfect generator which sees
X_v names fewer genres than one which sees the picture, so it asks for an encoder that has learnt for longer.
"""

from vmas.experiments.sweep import Condition

TARGET = "table5"
TITLE = "Table 5. Ablation of video-music alignment"
BASELINE = {"align": {"contrastive": False, "beat_weighting": False}}
CONTRASTIVE = {"align": {"contrastive": True, "beat_weighting": False, "temperature": 1.0}}
TENTH = {"freeze": [], "encoder_lr_scale": 0.1}  # `trained` showed the whole rate to undo what stage 1a taught
LONGER: dict[str, dict] = {"decoder": {"row_times": "frames"}, "train": {"pretrain_steps": 7200}}
LITERAL = {"contrastive": True, "beat_weighting": True, "normalise": "count", "temperature": 1.0, "alpha": 0.05}

LEAD = "where the video helps most, by `placement` on the validation split"


def _beat(**align) -> dict:
    return {"align": {**LITERAL, **align}}


def _over(name: str, label: str, about: str = "", **align) -> Condition:
    """A variant over Σw, as literal as the paper's row in everything else."""
    about = about or "eq. 3"
    return Condition(name, f"+ beat weighting over Σw{label}", _beat(normalise="weight", **align), about=about)


CONDITIONS: tuple[Condition, ...] = (
    Condition("baseline", "Autoregressive baseline", BASELINE, "Autoregressive Baseline", published=True),
    Condition("contrastive", "+ contrastive", CONTRASTIVE, "+ Video-Music Contrastive", published=True),
    Condition(
        "beats",
        "+ beat weighting (literal)",
        _beat(),
        "+ Video-Beat Alignment",
        about="but for a guard: where nothing moves there is no beat (`all-maxima` is without it)",
        published=True,
    ),
    Condition(
        "temperature", "+ contrastive, τ = .1", {"align": {**CONTRASTIVE["align"], "temperature": 0.1}}, about="eq. 2"
    ),
    Condition(
        "trained",
        "+ contrastive, encoder trained",
        {**CONTRASTIVE, "train": {"freeze": []}},
        about="stage 2 trains the encoder too, so that eq. 2 can shape X_v, at its own rate, thrice stage 1a's",
    ),
    Condition(
        "baseline-trained-.1",
        "Autoregressive baseline, encoder trained at a tenth of the rate",
        {**BASELINE, "train": TENTH},
        about="stage 2 trains the encoder too, at a third of stage 1a's rate",
    ),
    Condition(
        "trained-.1",
        "+ contrastive, encoder trained at a tenth of the rate",
        {**CONTRASTIVE, "train": TENTH},
        about="the same, so that eq. 2 can shape X_v",
        against="baseline-trained-.1",
    ),
    Condition(
        "beats-long",
        "+ beat weighting (literal), three times as long",
        _beat(),
        about="three times the updates of stage 2",
        against="beats",
        longer=3,
    ),
    Condition(
        "contrastive-long",
        "+ contrastive, three times as long",
        CONTRASTIVE,
        about="three times the updates of stage 2",
        against="contrastive",
        longer=3,
    ),
    Condition("all-maxima", "+ beat weighting (literal), every maximum", _beat(require_positive=False), about="eq. 3"),
    Condition("beta", "+ beat weighting, β = .025", _beat(beta=0.025), about="β a tenth, as L_g is with these weights"),
    _over("normalised", "", about="eq. 4 divided by Σw"),
    _over("mid", ", mid frame", about="and the flow put between its two frames", flow_time="mid"),
    _over("dilated", ", dilated", about="weight 1 on t±δ", place="dilated"),
    _over("onset", ", on the onset", about="weight 1 where the music is", place="onset"),
    _over("lead", ", 60 ms before the onset", about=LEAD, place="onset", lead=3),
    _over("lead-.25", ", α = .25, 60 ms before the onset", about=LEAD, place="onset", lead=3, alpha=0.25),
    _over("delta-2", ", δ = 2", delta=2),
    _over("delta-10", ", δ = 10", delta=10),
    _over("alpha-.25", ", α = .25", alpha=0.25),
    _over("alpha-.5", ", α = .5", alpha=0.5),
    Condition(
        "shipped",
        "+ beat weighting as in Table 3",
        {},
        about="α and the division that the profile takes; the point of figures 6 and 7 with all clips",
        run="data-size-share-100",
    ),
    Condition("no-bias", "Autoregressive baseline, no time bias", {**BASELINE, "decoder": {"time_bias_s": None}}),
    Condition(
        "row-times",
        "Autoregressive baseline, rows at their frames",
        {**BASELINE, "decoder": {"row_times": "frames"}},
        about="the time bias a frame earlier, where each row of X_v is centred",
    ),
    Condition(
        "longer-music",
        "Autoregressive baseline, longer stage 1b",
        {**BASELINE, **LONGER},
        about="rows at their frames; the decoder hears three times as much music before it sees a video",
        against="row-times",
    ),
    Condition(
        "longer-slow",
        "Autoregressive baseline, longer stage 1b, slower stage 2",
        {**BASELINE, **LONGER, "train": {**LONGER["train"], "lr": 0.001}},
        about="from the decoder of `longer-music`, which the whole rate makes worse from the first updates on; a third",
        against="longer-music",
    ),
    Condition(
        "longer-twice",
        "Autoregressive baseline, longer stage 1b, twice the clips",
        {**BASELINE, **LONGER},
        about="from the decoder of `longer-music`; stage 2 has 2,400 further videos of the same generator",
        data="twice",
        against="longer-music",
    ),
    Condition(
        "longer-fourfold",
        "Autoregressive baseline, longer stage 1b, four times the clips, three times as long",
        {**BASELINE, **LONGER},
        about="from the decoder of `longer-music`; stage 2 has 7,200 further videos and three times the updates",
        data="fourfold",
        against="longer-music",
        longer=3,
    ),
    Condition(
        "longer-contrastive",
        "+ contrastive, longer stage 1b",
        {**CONTRASTIVE, **LONGER},
        about="from the decoder of `longer-music`",
        against="longer-music",
    ),
    Condition(
        "longer-motion",
        "Autoregressive baseline, longer stage 1a",
        {**BASELINE, "encoder": {"motion_steps": 2400}, "decoder": {"row_times": "frames"}},
        about="rows at their frames; the encoder has three times the updates before stage 2",
        against="row-times",
    ),
    Condition(
        "no-motion",
        "Autoregressive baseline, encoder not pretrained",
        {**BASELINE, "encoder": {"motion_steps": 0}, "train": {"freeze": []}},
        about="and therefore trained in stage 2, at thrice the learning rate of stage 1a",
    ),
)
PAPER = tuple(c.name for c in CONDITIONS if c.paper)
_LITERALLY = (*PAPER, "temperature", "all-maxima", "beta", "contrastive-long", "beats-long")
_OVER = tuple(c.name for c in CONDITIONS if "over Σw" in c.label or c.name == "shipped")
# Rows whose validation curves are drawn together: all in one figure could not be told apart.
CURVES = {
    "the paper's rows and their like": _LITERALLY,
    "beat weights over Σw": _OVER,
    "encoder, time bias, longer stages, more clips": tuple(
        c.name for c in CONDITIONS if c.name not in (*_LITERALLY, *_OVER)
    ),
}
PAIRS = (
    ("lead", "onset"),
    ("lead-.25", "alpha-.25"),
    ("lead-.25", "contrastive"),
    ("alpha-.5", "contrastive"),  # the weakest weights against none
)
QUOTED = ("table5",)  # the paper's numbers beside ours
REFERENCE = "baseline"
EVERY_SEED = PAPER  # the paper's rows get every seed asked for, the variants the first three
VARIANT_SEEDS = 3
