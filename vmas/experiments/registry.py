"""Every table and figure of the paper, and further questions, as a target, and whether it can be run yet."""

import textwrap
from dataclasses import dataclass

from vmas.errors import UsageError, nearest


@dataclass(frozen=True)
class Target:
    """`module` computes it and `notebook` tells it; both are empty while it is planned.

    A `sweep` target has no module: the conditions in the module that `sweep` names are trained with several
    seeds each, and its table is put together from the records of those runs.
    """

    name: str
    title: str
    description: str
    notebook: str = ""
    module: str = ""
    sweep: str = ""

    @property
    def implemented(self) -> bool:
        return bool(self.module or self.sweep)


REGISTRY: dict[str, Target] = {
    t.name: t
    for t in (
        Target(
            "table1",
            "Table 1. Datasets",
            "size, frame similarity and voices of video-music datasets; marks of the filters",
            "01_dataset_filtering.ipynb",
            "vmas.experiments.table1",
        ),
        Target("table2", "Table 2. Video encoder", "stages and output sizes of the efficient encoder"),
        Target(
            "table3",
            "Table 3. Comparison with the state of the art",
            "FAD, KL and MV Align on two test sets",
            "10_table3_state_of_the_art.ipynb",
            "vmas.experiments.table3",
        ),
        Target("table4", "Table 4. V2Meow", "comparison on the same training data"),
        Target(
            "table5",
            "Table 5. Alignment",
            "the contrastive and the beat term, one at a time (--seeds trains)",
            "12_table5_alignment_ablation.ipynb",
            sweep="vmas.experiments.table5",
        ),
        Target(
            "table6",
            "Table 6. Video encoders",
            "CLIP-style, Hiera-style and ours, with GFLOPs (--seeds trains)",
            "13_table6_encoders.ipynb",
            sweep="vmas.experiments.table6",
        ),
        Target("table7", "Table 7. Retrieval", "video-to-music recall"),
        Target(
            "fig2",
            "Figure 2. Video-beat alignment",
            "eq. 3 step by step on one clip, each step marked against the truth",
            "06_beat_alignment.ipynb",
            "vmas.experiments.fig2",
        ),
        Target("fig3", "Figure 3. Human evaluation", "preference with intervals"),
        Target(
            "fig5",
            "Figure 5. Genres",
            "genres of the filtered data beside the truth",
            "01_dataset_filtering.ipynb",
            "vmas.experiments.fig5",
        ),
        Target(
            "fig6",
            "Figure 6. Data size, FAD",
            "FAD against the share of training data (--seeds trains)",
            "16_fig6_fig7_data_size.ipynb",
            sweep="vmas.experiments.data_size",
        ),
        Target(
            "fig7",
            "Figure 7. Data size, MV Align",
            "MV Align against the share of training data (--seeds trains)",
            "16_fig6_fig7_data_size.ipynb",
            sweep="vmas.experiments.data_size",
        ),
        Target("fig8", "Figure 8. Spectrograms", "the same clip scored by each system"),
        Target(
            "cleaning",
            "Section 6.2. Data cleaning",
            "training on dirty and on filtered videos (--seeds trains)",
            "17_data_cleaning.ipynb",
            sweep="vmas.experiments.cleaning",
        ),
        Target(
            "corpora",
            "Beat weights on other corpora",
            "beat weights where the picture shows more, or fewer, of the beats (--seeds trains)",
            "12_table5_alignment_ablation.ipynb",
            sweep="vmas.experiments.corpora",
        ),
        Target(
            "follow",
            "Does the music follow the video?",
            "other, shifted, cut, slowed and frozen videos",
            "14_does_the_music_follow.ipynb",
            "vmas.experiments.follow",
        ),
        Target(
            "placement",
            "Where does the video help?",
            "the likelihood that the video adds, token by token, and how much of it eq. 3's weights cover",
            "20_where_the_weights_sit.ipynb",
            "vmas.experiments.placement",
        ),
        Target(
            "damage",
            "Do the metrics see damage?",
            "FAD, KL and MV Align of real music that is spoilt more and more",
            "09_metrics.ipynb",
            "vmas.experiments.damage",
        ),
        Target(
            "genres",
            "How far do the genres overlap?",
            "what tells the mini corpus's genres apart: a strong tagger, the true attributes of music and picture",
            "02_mini_corpus.ipynb",
            "vmas.experiments.genres",
        ),
        Target(
            "ideal",
            "What would a perfect generator score?",
            "further music of the corpus itself for the test clips, told less and less of their genre",
            "21_how_good_can_it_be.ipynb",
            "vmas.experiments.ideal",
        ),
        Target(
            "probe",
            "What does X_v tell of the genre?",
            "a linear probe of encoders that have learnt nothing, as long as in the recipe, and three times as long",
            "22_what_the_encoder_tells.ipynb",
            "vmas.experiments.probe",
        ),
        Target(
            "claims",
            "Claims",
            "each sentence of the paper that the records can support or contradict, with a verdict by rule",
            "19_claims.ipynb",
            "vmas.experiments.claims",
        ),
    )
}


def available() -> list[Target]:
    return [t for t in REGISTRY.values() if t.implemented]


def planned() -> list[Target]:
    return [t for t in REGISTRY.values() if not t.implemented]


def get(name: str) -> Target:
    """An implemented target. Raises UsageError with the nearest names, or with what is available."""
    if name not in REGISTRY:
        raise UsageError(f"unknown target {name!r}: {nearest(name, [*REGISTRY, 'all', 'list'])}")
    target = REGISTRY[name]
    if not target.implemented:
        ready = ", ".join(t.name for t in available())
        raise UsageError(f"target {name} is planned, not available yet; available now: {ready}")
    return target


def listing(width: int = 120) -> str:
    """Every target with its state and its notebook, for the terminal; long lines go on under `what`."""
    rows = [("target", "state", "notebook", "what")]
    for t in REGISTRY.values():
        state = "available" if t.implemented else "planned"
        rows.append((t.name, state, t.notebook or "-", f"{t.title}: {t.description}"))
    rows.append(("all", "available", "-", "everything that is available"))
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)][:3]
    lines = []
    for *cells, what in rows:
        head = "".join(f"{cell:{wide}}  " for cell, wide in zip(cells, columns, strict=True))
        lines += textwrap.wrap(
            what, width, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
        )
    return "\n".join(lines)
