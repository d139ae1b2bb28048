"""The claims ledger: each sentence of the paper that a run can support or contradict, against the records.

Nothing is trained or measured here: every finding (`vmas.experiments.findings`) is read from a record that still holds,
and the verdict is made by a rule (`RULE`), never typed.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmas import paths, records
from vmas.config import Profile, sha256
from vmas.errors import DataError
from vmas.experiments import findings, table3
from vmas.experiments.findings import (
    ABOUT,
    ALIGN,
    FAD,
    KL,
    NEAR,
    SHIFTED,
    TEST,
    Answer,
    Apart,
    Cell,
    Cheaper,
    Finding,
    Gain,
    Planned,
    Printed,
    Share,
    Test,
    World,
)
from vmas.metrics.verdict import BETTER, FEW, TRAININGS, WORSE
from vmas.records import Record, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = "claims"
TITLE = "Claims ledger"
HOLDS, FAILS = "holds at mini scale", "does not hold at mini scale"
OPEN, CLOSED = "cannot tell", "not testable here"
RULE = (
    f"Verdict, by rule: {FAILS} where a finding is worse; {HOLDS} where all that the claim asks for is recorded and"
    f" better; else {OPEN}. A finding is better or worse where its 95% interval leaves out 0 (rows of one record: where"
    f" their intervals lie apart), and nothing that is trained is called so with fewer than {TRAININGS} trainings (of"
    f" each side). What is counted at the paper's own size has a range of readings in place of an interval; counted"
    f" numbers agree within {NEAR:.0%}, a share of about so many within {ABOUT:.2f}. Intervals are not adjusted for"
    " their number: a claim with several findings fails by chance more easily, and holds less easily, than one with a"
    " single finding."
)


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper in our words, the numbers that it prints for it, and what tests it.

    `printed` is a format of `cells`. Where nothing can be recorded here, `never` says why.
    """

    name: str
    text: str
    where: str
    printed: str
    cells: tuple[Cell, ...] = ()
    tests: tuple[Test, ...] = ()
    never: str = ""

    def evidence(self) -> str:
        return self.printed.format(*self.cells)


def verdict(claim: Claim, found: Sequence[Finding], lacks: Sequence[str] = (), smoke: bool = False) -> str:
    """What the findings make of a claim (`RULE`); `lacks` names what it asks for and no record has."""
    if smoke:
        return f"{OPEN}: numbers of smoke mean nothing"
    seen = [f.found for f in found if f.counts]
    if not seen and claim.never:
        return f"{CLOSED}: {claim.never}"
    if WORSE in seen:
        return FAILS
    if lacks or not seen:
        return f"{OPEN}: no record of {', '.join(dict.fromkeys(lacks)) or 'it'}"
    if set(seen) == {BETTER}:
        return HOLDS
    return f"{OPEN}: {FEW if FEW in seen else next(x for x in seen if x != BETTER)}"


def _table3(metric: str, *rows: str) -> tuple[Cell, ...]:
    """Numbers of Table 3 on DISCO-MV, then on MusicCaps."""
    return tuple(Cell("table3", row, metric, data) for data in ("DISCO-MV", "MusicCaps") for row in rows)


def _rows(better: tuple[str, ...], than: tuple[str, ...], *metrics: str) -> tuple[Test, ...]:
    """Systems of Table 3 against others, on both test sets."""
    return tuple(Apart("table3", data, better, than, metric) for data in (TEST, SHIFTED) for metric in metrics)


_FOUR = ("CMT [14]", "Video2Music [24]", "VidMusicGen [11]", "Vid2MLDM [19]")
_EARLIER = ("CMT", "Video2Music", "VidMusicGen", "Vid2MLDM")
_LINE = "{} against {} (CMT), {} (Video2Music), {} (VidMusicGen), {} (Vid2MLDM)"
_SHARES = ("share-10", "share-25", "share-50", "share-100")
_STEPS = tuple(zip(_SHARES[1:], _SHARES[:-1], strict=True))
_VOCALS = Cell("data", "vocal removal", "soundtracks without vocals")
_STEMS = "vocal removal, on the stems"
_ROWS5 = ("Autoregressive Baseline", "+ Video-Music Contrastive", "+ Video-Beat Alignment")

CLAIMS: tuple[Claim, ...] = (
    *(
        Claim(
            f"prior-{printed.split()[0].lower()}",
            f"VMAs is better than the earlier systems by {printed}",
            "section 6.1, Table 3",
            f"DISCO-MV {_LINE}; MusicCaps {_LINE}",
            _table3(printed, "VMAs (Ours)", *_FOUR),
            _rows((table3.OURS,), _EARLIER, ours),
        )
        for printed, ours in (("FAD", FAD), ("KL", KL), ("MV Align", ALIGN))
    ),
    Claim(
        "symbolic",
        "Systems that write symbolic music are worse than those that write waveforms",
        "section 6.1, Table 3",
        "DISCO-MV, FAD {} (CMT) and {} (Video2Music) against {} (VidMusicGen) and {} (Vid2MLDM); MV Align the other"
        " way round, {} and {} against {} and {}",
        tuple(Cell("table3", row, metric, "DISCO-MV") for metric in ("FAD", "MV Align") for row in _FOUR),
        _rows(_EARLIER[2:], _EARLIER[:2], FAD, KL, ALIGN),
    ),
    Claim(
        "autoregressive",
        "Autoregressive decoding is better than latent diffusion, by all metrics",
        "section 6.1, Table 3",
        "DISCO-MV, FAD {} against {} (Vid2MLDM); MusicCaps, FAD {} against {}",
        _table3("FAD", "VMAs (Ours)", "Vid2MLDM [19]"),
        _rows((table3.OURS,), ("Vid2MLDM",), FAD, KL, ALIGN),
    ),
    Claim(
        "v2meow",
        "VMAs is better than V2Meow when both are trained on the same 100K videos",
        "section 6.1, Table 4",
        "FAD {} against {}, KL {} against {}",
        tuple(
            Cell("table4", r, m) for m in ("FAD", "KL (Leaf)") for r in ("VMAs (Ours), MV100K", "V2Meow [43], MV100K")
        ),
        (Planned("table4"),),
    ),
    *(
        Claim(
            f"contrast-{printed.lower()}",
            f"The contrast between video and music (eq. 2) lowers {printed}",
            "section 6.2, Table 5",
            f"{printed} {{}} to {{}}",
            tuple(Cell("table5", r, printed) for r in _ROWS5[:2]),
            (Gain("table5", "contrastive", "baseline", (ours,)),),
        )
        for printed, ours in (("FAD", FAD), ("KL", KL))
    ),
    Claim(
        "beats",
        "Weights on common beats (eq. 3 and 4) raise MV Align",
        "section 6.2, Table 5",
        "MV Align {} to {}; the text's gain, {}, is that over the baseline's {}",
        (
            *(Cell("table5", r, "MV Align") for r in _ROWS5[1:]),
            Cell("text", "video-beat alignment", "MV Align gain"),
            Cell("table5", _ROWS5[0], "MV Align"),
        ),
        (
            *(Gain("table5", "beats", than, (ALIGN,)) for than in ("contrastive", "baseline")),
            # the weights where the video helps, and the same without the move
            *(Gain("table5", "lead-.25", than, (ALIGN,), counts=False) for than in ("contrastive", "alpha-.25")),
        ),
    ),
    Claim(
        "both",
        "Contrast and beat weights together are best by FAD, KL and MV Align",
        "section 6.2, Table 5",
        "FAD {} against {} of the baseline, KL {} against {}, MV Align {} against {}",
        tuple(Cell("table5", r, m) for m in ("FAD", "KL", "MV Align") for r in (_ROWS5[2], _ROWS5[0])),
        (Gain("table5", "beats", "baseline", (FAD, KL, ALIGN)),),
    ),
    Claim(
        "follows-content",
        "The music of VMAs fits what the video shows",
        "sections 1 and 4.4",
        "no number of its own",
        (),
        (Answer(("its own video rather", "the genre of the picture after a cut")),),
    ),
    Claim(
        "follows-motion",
        "The beats of VMAs' music meet the movements of the picture",
        "section 4.4, appendix F",
        "MV Align {}; people prefer its alignment {} of the time; one spectrogram (Figure 8)",
        (
            Cell("table5", _ROWS5[2], "MV Align"),
            Cell("fig3", "VMAs against all four", "preference, alignment"),
        ),
        (Answer(("the picture's peaks at the right time", "X_v at the right time", "the motion (MV Align")),),
    ),
    Claim(
        "follows-pace",
        "VMAs' music reflects the pace of what happens in the video",
        "appendix F",
        "one spectrogram (Figure 8)",
        (),
        (Answer(("half the speed, by its onsets", "half the speed, by its tempo")),),
    ),
    Claim(
        "encoder-quality",
        "The video encoder gives better music than CLIP and Hiera",
        "section 6.2, Table 6",
        "FAD {} against {} (CLIP) and {} (Hiera), KL {} against {} and {}, MV Align {} against {} and {}",
        tuple(Cell("table6", r, m) for m in ("FAD", "KL", "MV Align") for r in ("Ours", "CLIP [37]", "Hiera [39]")),
        tuple(Gain("table6", "ours", other, (FAD, KL, ALIGN)) for other in ("clip", "hiera")),
    ),
    Claim(
        "dense-frames",
        "Many densely sampled frames help to align the music",
        "sections 1 and 4.2",
        "MV Align {} with 96 frames, {} with 16 of another encoder (Hiera)",
        tuple(Cell("table6", r, "MV Align") for r in ("Ours", "Hiera [39]")),
        (Gain("table6", "ours", "ours-16", (ALIGN,)),),
    ),
    Claim(
        "encoder-cost",
        "The video encoder of 96 frames costs less than CLIP or Hiera of 16 (counted at the paper's size)",
        "section 6.2, Table 6",
        "{} GFLOPs against {} (CLIP) and {} (Hiera)",
        tuple(Cell("table6", r, "GFLOPs") for r in ("Ours", "CLIP [37]", "Hiera [39]")),
        (Cheaper(),),
    ),
    Claim(
        "encoder-gflops",
        "Table 6's three GFLOPs compare: one way of counting gives them all (counted at the paper's size; implied)",
        "section 6.2, Table 6",
        "{}, {} (CLIP), {} (Hiera)",
        tuple(Cell("table6", r, "GFLOPs") for r in ("Ours", "CLIP [37]", "Hiera [39]")),
        (Printed(),),
    ),
    Claim(
        "data-fad",
        "FAD improves consistently with the amount of training data, 10, 25, 50 and 100%",
        "section 6.2, Figure 6",
        "DISCO-MV {}, {}, {}, {}; MusicCaps {}, {}, {}, {}",
        tuple(Cell("fig6", r, "FAD", d) for d in ("DISCO-MV", "MusicCaps") for r in ("10%", "25%", "50%", "100%")),
        tuple(Gain("fig6", more, less, (FAD,), d) for d in (TEST, SHIFTED) for more, less in _STEPS),
    ),
    Claim(
        "data-align",
        "MV Align improves consistently with the amount of training data",
        "appendix E, Figure 7",
        "a figure without numbers",
        (),
        tuple(Gain("fig7", more, less, (ALIGN,), d) for d in (TEST, SHIFTED) for more, less in _STEPS),
    ),
    Claim(
        "data-tenth",
        "All of the training data is better than a tenth of it",
        "section 6.2, appendix E, Figures 6 and 7",
        "FAD {} against {} on DISCO-MV",
        tuple(Cell("fig6", r, "FAD", "DISCO-MV") for r in ("100%", "10%")),
        (
            Gain("fig6", "share-100", "share-10", (FAD,)),
            Gain("fig7", "share-100", "share-10", (ALIGN,)),
        ),
    ),
    Claim(
        "cleaning",
        "Training on filtered videos is better than on all",
        "section 6.2",
        "FAD {} to {}, KL {} to {}, MV Align {} to {}",
        tuple(
            Cell("cleaning", r, m) for m in ("FAD", "KL", "MV Align") for r in ("full DISCO-10M", "filtered DISCO-MV")
        ),
        (Gain("cleaning", "similarity", "dirty", (FAD, KL, ALIGN)),),
    ),
    Claim(
        "similarity",
        "The filters leave videos whose frames are less alike (in part by their own rule)",
        "section 3, Table 1",
        "mean frame similarity {} (DISCO-10M) to {} (DISCO-MV)",
        tuple(
            Cell("table1", "Avg. Frame Similarity Within Video", "frame similarity", d)
            for d in ("DISCO-10M", "DISCO-MV")
        ),
        (
            Apart(
                "table1",
                "our corpora",
                ("Dirty corpus, after the filters",),
                ("Dirty corpus, before the filters",),
                "frame similarity",
            ),
        ),
    ),
    Claim(
        "vocals",
        "Vocals can be removed from about 95% of the soundtracks",
        "section 3",
        "{} (Demucs)",
        (_VOCALS,),
        (
            Share("table1", _STEMS, "After Demucs", "free of vocals", _VOCALS),
            Share("table1", _STEMS, "After vocal removal", "free of vocals", _VOCALS, counts=False),
        ),
        never="it takes Demucs' weights",
    ),
    Claim(
        "retrieval",
        "The features of VMAs find a video's music better than MVPt's",
        "appendix E, Table 7",
        "R@10 {} against {} (CLIP) and {} (Hiera)",
        tuple(Cell("table7", r, "R@10") for r in ("VMAs, VMAs", "MVPt [46], CLIP [37]", "MVPt [46], Hiera [39]")),
        (Planned("table7"),),
    ),
    Claim(
        "preference",
        "People prefer the music of VMAs to that of four earlier systems",
        "section 6.1, Figure 3",
        "{} for quality, {} for alignment",
        tuple(Cell("fig3", "VMAs against all four", f"preference, {m}") for m in ("music quality", "alignment")),
        never="it takes listeners",
    ),
    Claim(
        "size",
        "The data set is some 2000 times as large as those of symbolic music",
        "section 3, Table 1",
        "{}",
        (Cell("data", "against symbolic datasets", "times larger"),),
        never="it takes 15.3 million videos of the web",
    ),
)


def _read(profile: Profile) -> World:
    """A world in which everything that the claims ask for was looked up. Raises DataError in profile paper."""
    if profile.name == "paper":
        raise DataError("claims, profile paper: no record of paper scale is there yet; see --profile mini")
    world = World(profile)
    for test in (t for c in CLAIMS for t in c.tests):
        if isinstance(test, Gain):
            world.runs(test.target)
        elif isinstance(test, Answer):
            world.trainings()
        elif isinstance(test, Apart | Share):
            world.record(test.target)
    return world


def _key(world: World, seed: int) -> str:
    told = [[dataclasses.asdict(c), c.evidence(), [type(t).__name__ for t in c.tests]] for c in CLAIMS]
    settings = [RULE, findings.counted(), world.profile.eval.bootstrap, world.profile.note, world.profile.status]
    return sha256(TARGET, told, settings, world.hashes(), seed)


def key(profile: Profile, seed: int = 0) -> str:
    """Hash of everything the verdicts depend on: the claims, the rule, and the numbers of the records that are there.

    Raises DataError in profile paper.
    """
    return _key(_read(profile), seed)


def plan(profile: Profile, seed: int = 0) -> list[tuple[str, Any, bool]]:
    """Which records there are to read (as `vmas.pipeline.plan`); the ledger makes none of them."""
    world = _read(profile)
    return [(f"records of {name}", paths.target(profile.name, name), bool(world.found(name))) for name in world.seen]


def compute(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Record:
    """The ledger: one row a finding, and `extra["ledger"]`, one entry a claim. Raises DataError in profile paper."""
    start = time.monotonic()
    say("reading the records")
    world = _read(profile)
    rows: list[Row] = []
    ledger = []
    for claim in CLAIMS:
        found = [f for t in claim.tests for f in t.findings(world)]
        lacks = [x for t in claim.tests for x in t.lacks(world)]
        decided = verdict(claim, found, lacks, profile.status == "smoke")
        rows += _result(claim, found, decided)
        sources = [t.source for t in claim.tests if t.source and (t.findings(world) or t.source not in world.seen)]
        ledger.append(
            {"name": claim.name, "claim": claim.text, "where": claim.where, "paper": claim.evidence()}
            | {"findings": [dataclasses.asdict(f) for f in found], "verdict": decided}
            | {"sources": list(dict.fromkeys(sources)), "lacks": list(dict.fromkeys(lacks))}
        )
    used = world.hashes()
    command = f"vmas reproduce {TARGET} --profile {profile.name}"
    prov = records.provenance(command, time.monotonic() - start, sha256(profile), sha256(used), sha256(used))
    extra = {"ledger": ledger, "rule": RULE, "note": profile.note, "read": used}
    return Record(TARGET, profile.name, TITLE, _key(world, seed), tuple(rows), prov, extra)


def _result(claim: Claim, found: Sequence[Finding], decided: str) -> list[Row]:
    """A row a finding, that of its difference; a claim without one is unavailable, with the reason."""
    if not found:
        return [
            Row(claim.text, claim.where, "verdict", "none", paper=claim.evidence(), status="unavailable", note=decided)
        ]
    out = []
    for f in found:
        bounds = None if f.lo is None or f.hi is None else (f.lo, f.hi)
        note = f"{claim.name}: {decided}. Finding: {f.found}{'' if f.counts else ' (stands beside, does not count)'}."
        if f.readings and bounds:
            note += f" Readings from {f.lo:+.3f} to {f.hi:+.3f}."
        interval = None if f.readings else bounds
        metric = f"{f.metric}, difference"
        at = (f.what, f.dataset, metric, f.direction, f.value, interval, f.n, f.seeds, None)
        out.append(Row(*at, claim.evidence(), f.status, note))
    return out


def figure(record: Record) -> "Figure":
    """Every finding with its interval, in the claim's favour to the right (`vmas.report.ledger`)."""
    from vmas.report import ledger

    return ledger.figure(record)


def as_markdown(record: Record) -> str:
    """The ledger as a table (`vmas.report.ledger`)."""
    from vmas.report import ledger

    return ledger.markdown(record)


def as_text(record: Record) -> str:
    """The ledger for a terminal (`vmas.report.ledger`)."""
    from vmas.report import ledger

    return ledger.plain(record)
