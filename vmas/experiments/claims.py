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
from vmas.experiments.findings import (
    BETTER,
    FEW,
    NEAR,
    SHIFTED,
    TEST,
    TRAININGS,
    WORSE,
    Answer,
    Apart,
    Cell,
    Cheaper,
    Finding,
    Gain,
    Printed,
    Share,
    Test,
    World,
)
from vmas.records import Record, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = "claims"
TITLE = "Claims ledger"
VERSION = 1  # of the claims, the findings and the rule
HOLDS, FAILS = "holds at mini scale", "does not hold at mini scale"
OPEN, CLOSED = "cannot tell", "not testable here"
FAD, KL, ALIGN = "FAD (codec)", "KL", "MV Align (2025, 9.6 fps)"
RULE = (
    f"Verdict, by rule: {FAILS} where a finding is worse; {HOLDS} where there are findings and all are better; else"
    f" {OPEN}. A finding is better or worse where its 95% interval leaves out 0 (two rows of one record: where their"
    f" intervals lie apart), and no row of a sweep is better or worse than another with fewer than {TRAININGS}"
    " trainings of each. What is asked of the committed model is answered for this one training. What is counted at"
    f" the paper's own size has the range of its readings in place of an interval; numbers agree within {NEAR:.0%}."
    " Intervals are not adjusted for their number."
)


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper in our words, the numbers that it prints for it, and what tests it.

    `printed` is a format of `cells`. Where no test has a record, `waits` says what is not there yet, or `never` why
    none can be had here.
    """

    name: str
    text: str
    where: str
    printed: str
    cells: tuple[Cell, ...] = ()
    tests: tuple[Test, ...] = ()
    waits: str = ""
    never: str = ""

    def evidence(self) -> str:
        return self.printed.format(*self.cells)


def verdict(claim: Claim, found: Sequence[Finding]) -> str:
    """What the findings make of a claim (`RULE`)."""
    if not found:
        return f"{CLOSED}: {claim.never}" if claim.never else f"{OPEN}: {claim.waits or 'no record yet'}"
    if any(f.status == "smoke" for f in found):
        return f"{OPEN}: numbers of smoke mean nothing"
    seen = [f.found for f in found]
    if WORSE in seen:
        return FAILS
    if set(seen) == {BETTER}:
        return HOLDS
    return f"{OPEN}: {FEW if FEW in seen else next(x for x in seen if x != BETTER)}"


def _table3(metric: str, *rows: str) -> tuple[Cell, ...]:
    return tuple(Cell("table3", row, metric, "DISCO-MV") for row in rows)


_SYSTEMS = "the earlier systems are not trained here yet"
_FOUR = ("CMT [14]", "Video2Music [24]", "VidMusicGen [11]", "Vid2MLDM [19]")
CLAIMS: tuple[Claim, ...] = (
    *(
        Claim(
            f"prior-{metric.split()[0].lower()}",
            f"VMAs is better than the earlier systems by {metric}",
            "section 6.1, Table 3",
            "{} against {} (CMT), {} (Video2Music), {} (VidMusicGen), {} (Vid2MLDM)",
            _table3(metric, "VMAs (Ours)", *_FOUR),
            waits=_SYSTEMS,
        )
        for metric in ("FAD", "KL", "MV Align")
    ),
    Claim(
        "symbolic",
        "Systems that write symbolic music are worse than those that write waveforms",
        "section 6.1, Table 3",
        "FAD {} (CMT) and {} (Video2Music) against {} (VidMusicGen) and {} (Vid2MLDM)",
        _table3("FAD", *_FOUR),
        waits=_SYSTEMS,
    ),
    Claim(
        "autoregressive",
        "Autoregressive decoding is better than latent diffusion",
        "section 6.1, Table 3",
        "FAD {} against {} (Vid2MLDM)",
        _table3("FAD", "VMAs (Ours)", "Vid2MLDM [19]"),
        waits=_SYSTEMS,
    ),
    *(
        Claim(
            f"contrast-{ours.split()[0].lower()}",
            f"The contrast between video and music (eq. 2) lowers {printed}",
            "section 6.2, Table 5",
            f"{printed} {{}} to {{}}",
            tuple(Cell("table5", r, printed) for r in ("Autoregressive Baseline", "+ Video-Music Contrastive")),
            (Gain("table5", "contrastive", "baseline", (ours,)),),
        )
        for printed, ours in (("FAD", FAD), ("KL", KL))
    ),
    Claim(
        "beats",
        "Weights on common beats (eq. 3 and 4) raise MV Align",
        "section 6.2, Table 5",
        "MV Align {} to {}",
        tuple(Cell("table5", r, "MV Align") for r in ("+ Video-Music Contrastive", "+ Video-Beat Alignment")),
        (Gain("table5", "beats", "contrastive", (ALIGN,)),),
    ),
    Claim(
        "follows-content",
        "The music fits what the video shows",
        "sections 1 and 4.5",
        "human preference {} for alignment, and MV Align",
        (Cell("fig3", "VMAs against all four", "preference, alignment"),),
        (Answer(("its own video rather than one of another genre", "the genre of the picture after a cut")),),
    ),
    Claim(
        "follows-motion",
        "Its beats meet the movements of the picture",
        "section 4.5, appendix F",
        "MV Align {} and one spectrogram (Figure 8)",
        (Cell("table5", "+ Video-Beat Alignment", "MV Align"),),
        (Answer(("the picture's peaks at the right time", "the motion (MV Align")),),
    ),
    Claim(
        "encoder-quality",
        "The video encoder gives better music than CLIP and Hiera",
        "section 6.2, Table 6",
        "MV Align {} against {} (CLIP) and {} (Hiera); FAD {} against {} and {}",
        tuple(Cell("table6", r, m) for m in ("MV Align", "FAD") for r in ("Ours", "CLIP [37]", "Hiera [39]")),
        tuple(Gain("table6", "ours", other, (FAD, KL, ALIGN)) for other in ("clip", "hiera")),
    ),
    Claim(
        "encoder-cost",
        "The video encoder of 96 frames costs less than CLIP or Hiera of 16",
        "section 6.2, Table 6",
        "{} GFLOPs against {} (CLIP) and {} (Hiera)",
        tuple(Cell("table6", r, "GFLOPs") for r in ("Ours", "CLIP [37]", "Hiera [39]")),
        (Cheaper(),),
    ),
    Claim(
        "encoder-gflops",
        "Table 6's three numbers count the same operations",
        "section 6.2, Table 6",
        "{} GFLOPs, {} (CLIP), {} (Hiera)",
        tuple(Cell("table6", r, "GFLOPs") for r in ("Ours", "CLIP [37]", "Hiera [39]")),
        (Printed(),),
    ),
    Claim(
        "data-fad",
        "More training data lowers FAD",
        "section 6.2, Figure 6",
        "FAD {} with a tenth, {} with all; MusicCaps {} and {}",
        tuple(Cell("fig6", r, "FAD", d) for d in ("DISCO-MV", "MusicCaps") for r in ("10%", "100%")),
        tuple(Gain("fig6", "share-100", "share-10", (FAD,), d) for d in (TEST, SHIFTED)),
    ),
    Claim(
        "data-align",
        "More training data raises MV Align",
        "appendix E, Figure 7",
        "a figure without numbers",
        (),
        (Gain("fig7", "share-100", "share-10", (ALIGN,)),),
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
        "The filter leaves videos whose frames are less alike",
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
                "Dirty corpus, after the filters",
                "Dirty corpus, before the filters",
                "frame similarity",
            ),
        ),
    ),
    Claim(
        "vocals",
        "Vocals can be removed from about 95% of the soundtracks",
        "section 3",
        "{}",
        (Cell("data", "vocal removal", "soundtracks without vocals"),),
        (
            Share(
                "table1",
                "vocal removal, on the stems",
                "After Demucs",
                "free of vocals",
                Cell("data", "vocal removal", "soundtracks without vocals"),
            ),
        ),
        never="it takes Demucs' weights; what stands in for it here is in table1",
    ),
    Claim(
        "retrieval",
        "Its features find a video's music better than MVPt's",
        "appendix E, Table 7",
        "R@10 {} against {} (CLIP) and {} (Hiera)",
        tuple(Cell("table7", r, "R@10") for r in ("VMAs, VMAs", "MVPt [46], CLIP [37]", "MVPt [46], Hiera [39]")),
        waits="table7 is not there yet",
    ),
    Claim(
        "v2meow",
        "VMAs is better than V2Meow when both are trained on the same 100K videos",
        "section 6.1, Table 4",
        "FAD {} against {}",
        tuple(Cell("table4", r, "FAD") for r in ("VMAs (Ours), MV100K", "V2Meow [43], MV100K")),
        waits="table4 is not there yet",
    ),
    Claim(
        "preference",
        "People prefer its music to that of four earlier systems",
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


def key(profile: Profile, seed: int = 0) -> str:
    """Hash of everything the verdicts depend on: the claims, and the keys of the records that are there."""
    seen = World(profile)
    found = [[t.keys(seen) for t in c.tests] for c in CLAIMS]
    return sha256(TARGET, VERSION, [dataclasses.asdict(c) for c in CLAIMS], found, profile.eval.bootstrap, seed)


def plan(profile: Profile, seed: int = 0) -> list[tuple[str, Any, bool]]:
    """What the ledger reads, and whether it is there (as `vmas.pipeline.plan`)."""
    seen = World(profile)
    found: dict[str, bool] = {}
    for test in (t for c in CLAIMS for t in c.tests):
        found[test.source()] = found.get(test.source(), False) or bool(test.keys(seen))
    return [(f"records of {name}", paths.target(profile.name, name), there) for name, there in found.items()]


def compute(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Record:
    """The ledger: one row a finding, and `extra["ledger"]`, one entry a claim. Raises DataError in "paper"."""
    start = time.monotonic()
    if profile.name == "paper":
        raise DataError("claims, profile paper: no record of paper scale is there yet; see --profile mini")
    say("reading the records")
    seen = World(profile)
    rows: list[Row] = []
    ledger = []
    for claim in CLAIMS:
        found = [f for t in claim.tests for f in t.findings(seen)]
        decided = verdict(claim, found)
        rows += _rows(claim, found, decided)
        sources = list(dict.fromkeys(t.source() for t in claim.tests)) if found else []
        ledger.append(
            {"name": claim.name, "claim": claim.text, "where": claim.where, "paper": claim.evidence()}
            | {"findings": [dataclasses.asdict(f) for f in found], "verdict": decided, "sources": sources}
        )
    used = sorted({k for c in CLAIMS for t in c.tests for k in t.keys(seen)})
    command = f"vmas reproduce {TARGET} --profile {profile.name}"
    prov = records.provenance(command, time.monotonic() - start, sha256(profile), sha256(used), sha256(used))
    extra = {"ledger": ledger, "rule": RULE, "note": profile.note}
    return Record(TARGET, profile.name, TITLE, key(profile, seed), tuple(rows), prov, extra)


def _rows(claim: Claim, found: Sequence[Finding], decided: str) -> list[Row]:
    if not found:
        return [Row(claim.text, claim.where, "verdict", "none", paper=claim.evidence(), status="quoted", note=decided)]
    return [
        Row(claim.text, f"{f.what}; {f.dataset}", f.metric, f.direction, f.value,
            None if f.lo is None or f.hi is None else (f.lo, f.hi), f.n, f.seeds, None, claim.evidence(), f.status,
            f"{f.found}; {decided}")
        for f in found
    ]  # fmt: skip


def figure(record: Record) -> "Figure":
    """Every finding with its interval, in the claim's favour to the right (`vmas.report.ledger`)."""
    from vmas.report import ledger

    return ledger.figure(record)


def markdown(record: Record) -> str:
    """The ledger as a table (`vmas.report.ledger`)."""
    from vmas.report import ledger

    return ledger.markdown(record)


def plain(record: Record) -> str:
    """The ledger for a terminal (`vmas.report.ledger`)."""
    from vmas.report import ledger

    return ledger.plain(record)
