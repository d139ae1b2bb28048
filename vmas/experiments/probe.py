"""What does X_v tell of the genre, and would an encoder that learns for longer tell more?

A linear probe is fitted on what an encoder says of the training clips, and asked about clips that it has not seen:

    untrained       an encoder as it is drawn
    stage 1a        the profile's, which stands for Hiera's public weights
    longer          three times as many updates (the encoder of Table 5's `longer-motion`)
    picture         no probe: the likeliest genre by Bayes' rule over the corpus's knobs, which nobody can beat

A probe is a lower bound: X_v may tell more than a linear one reads. The encoders are those of stage 1 of seeds 1 to 3,
from the committed checkpoints or the cache where they are there, and trained where not.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas import checkpoint, config, paths, pipeline, records, versions
from vmas.config import Profile, plain, sha256
from vmas.errors import DataError
from vmas.metrics import intervals, verdict
from vmas.records import Record, Row

if TYPE_CHECKING:
    from vmas.features import SplitFeatures
    from vmas.model import VMAs
    from vmas.training.sources import Data

TARGET = "probe"
TITLE = "What does X_v tell of the genre?"
STAGES = ("encoder", "flow", "training", "probe")
SPLITS = {"val": "corpus, validation", "test": "corpus, test"}
SEEDS = (1, 2, 3)
UNTRAINED, STAGE_1A, LONGER = "Encoder, untrained", "Encoder, stage 1a", "Encoder, three times as long"
TIMES = {UNTRAINED: 0, STAGE_1A: 1, LONGER: 3}  # the profile's updates of stage 1a
PICTURE = "The picture itself"
SYSTEMS = (*TIMES, PICTURE)
ACCURACY, LOSS = "genre accuracy", "log loss"
DIRECTIONS = {ACCURACY: "up", LOSS: "down"}
BPM = 4.0  # width of the tempo's bins that the probe is given
BATCH = 16  # clips


def key(profile: Profile, seed: int = 0) -> str:
    """Hash of everything the numbers depend on."""
    from vmas.corpus import data_sha256

    about = {k: v for k, v in plain(profile).items() if k in ("clip", "corpus", "encoder", "eval")}
    codec = checkpoint.shas(paths.checkpoints(profile.name), "codec")
    return sha256(TARGET, about, data_sha256(profile), codec, seed, SEEDS, TIMES, versions.of(*STAGES))


def summaries(model: "VMAs", split: "SplitFeatures", progress: bool = True) -> np.ndarray:
    """What the probe reads [N,2d+bins]: mean and spread of X_v over time, and the tempo, which the beats show."""
    import torch
    from tqdm.auto import tqdm

    from vmas.training.stages import encode

    found = []
    for i in tqdm(range(0, len(split), BATCH), desc="X_v", unit="batch", disable=None if progress else True):
        X_v = encode(model, split.frames[i : i + BATCH])
        found.append(torch.cat([X_v.mean(1), X_v.std(1)], 1).cpu().numpy())
    tempo = (split.manifest["tempo_bpm"].to_numpy(float) // BPM).astype(int)
    return np.concatenate([np.concatenate(found), np.eye(int(300 / BPM))[tempo]], 1)


def fitted(known: np.ndarray, genres: np.ndarray):
    """A linear probe of the genre, its penalty chosen by cross-validated likelihood on the training clips."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    penalties = {"logisticregression__C": [10.0**k for k in range(-4, 2)]}
    return GridSearchCV(model, penalties, scoring="neg_log_loss", cv=4).fit(known, genres)


def judged(chances: np.ndarray, genres: np.ndarray) -> dict[str, np.ndarray]:
    """Every clip's `ACCURACY` (1 where the likeliest genre is its own) and `LOSS` in nats, from P(genre) [N,K]."""
    own = chances[np.arange(len(genres)), genres]
    return {ACCURACY: (chances.argmax(1) == genres).astype(float), LOSS: -np.log(np.maximum(own, 1e-12))}


def encoder(profile: Profile, codec: Any, data: "Data", seed: int, device: str, progress: bool, say) -> "VMAs":
    """A model with the encoder that stage 1a of `seed` leaves, the rest of it as drawn; in float32."""
    from accelerate import PartialState

    from vmas.model import VMAs
    from vmas.training.stages import Session, pretrain_encoder

    PartialState(cpu=device == "cpu")
    profile = config.changed(profile, {"train": {"precision": "fp32"}})
    model = VMAs(profile, codec)
    learnt, _ = pretrain_encoder(Session(profile, seed, device, progress, say), data)
    model.encoder.load_state_dict(learnt.state_dict())
    return model.eval()


def compute(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Record:
    """The probe's accuracy and log loss for each encoder. Raises DataError in profile paper."""
    from vmas.corpus import GENRES, data_sha256, sample_spec
    from vmas.corpus.posterior import genre_posterior
    from vmas.features import load_split
    from vmas.generate import pick_device
    from vmas.training.sources import open_data
    from vmas.training.stages import the_codec

    start, device = time.monotonic(), pick_device(device)
    if profile.name == "paper":
        raise DataError("probe asks about the procedural corpus, whose genres are known; there is none at paper scale")
    root = pipeline.parts(profile, seed, progress, say=say, splits=("train", *SPLITS))
    read = {s: load_split(profile, s, progress=progress) for s in ("train", *SPLITS)}
    codec = the_codec(profile)
    data = open_data(profile, codec, progress=progress)
    # system → split → metric → [seeds, clips]
    scores: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    said: dict[str, dict[str, np.ndarray]] = {}  # the genres that were named, [seeds, clips]
    for system, times in TIMES.items():
        p = config.changed(profile, {"encoder": {"motion_steps": times * profile.encoder.motion_steps}})
        chances: dict[str, list[np.ndarray]] = {s: [] for s in SPLITS}
        for s in SEEDS:
            say(f"{system}, seed {s}")
            model = encoder(p, codec, data, s, device, progress, say)
            known = {split: summaries(model, found, progress) for split, found in read.items()}
            probe = fitted(known["train"], read["train"].genres)
            for split in SPLITS:
                chances[split].append(_of_all(probe, known[split], len(GENRES)))
        scores[system] = {split: _stacked(found, read[split].genres) for split, found in chances.items()}
        said[system] = {split: np.stack([c.argmax(1) for c in found]) for split, found in chances.items()}
    scores[PICTURE], said[PICTURE] = {}, {}
    for split in SPLITS:
        clips = [sample_spec(split, i, profile.corpus, profile.clip.seconds) for i in range(len(read[split]))]
        exact = np.array([genre_posterior(c, profile.corpus) for c in clips])
        scores[PICTURE][split] = _stacked([exact], read[split].genres)
        said[PICTURE][split] = exact.argmax(1)[None]
    table = [
        row
        for system in SYSTEMS
        for split in SPLITS
        for row in rows(system, SPLITS[split], scores[system][split], said[system][split], read[split].genres, profile)
    ]
    command = f"vmas reproduce {TARGET} --profile {profile.name} --seed {seed}"
    weights = checkpoint.read_manifest(root / "codec")["sha256"]
    prov = records.provenance(command, time.monotonic() - start, sha256(profile), data_sha256(profile), weights)
    found = differences(scores[LONGER], scores[STAGE_1A], profile)
    extra: dict[str, Any] = {
        "note": profile.note,
        "encoders": list(SEEDS),
        "differences": found,
        "draws": "encoders",
        "chance": "the same answers dealt out to the clips at random.",
        "remarks": [
            f"Intervals are over clips and the encoders of {len(SEEDS)} trainings; {PICTURE.lower()} has clips alone.",
            *map(_told, found),
        ],
    }
    return Record(TARGET, profile.name, TITLE, key(profile, seed), tuple(table), prov, extra)


def _of_all(probe: Any, known: np.ndarray, genres: int) -> np.ndarray:
    """P(genre) [N,K] with a column for genres that no training clip has, too."""
    out = np.zeros((len(known), genres))
    out[:, probe.classes_] = probe.predict_proba(known)
    return out


def _stacked(chances: Sequence[np.ndarray], genres: np.ndarray) -> dict[str, np.ndarray]:
    found = [judged(c, genres) for c in chances]
    return {metric: np.stack([f[metric] for f in found]) for metric in DIRECTIONS}


def rows(
    system: str, dataset: str, scores: dict[str, np.ndarray], said: np.ndarray, true: np.ndarray, profile: Profile
) -> list[Row]:
    """One row a metric from `scores` [seeds, clips] each, with an interval over both.

    Chance of the accuracy: the same answers `said` int [seeds, clips] dealt out to the clips at random.
    """
    out = []
    for metric, direction in DIRECTIONS.items():
        s = intervals.stratified(scores[metric], n=profile.eval.bootstrap)
        chance = float((said[:, :, None] == true).mean()) if metric == ACCURACY else None
        count = (len(true), len(said), chance)
        out.append(Row(system, dataset, metric, direction, s.mean, (s.lo, s.hi), *count, None, profile.status))
    return out


def differences(
    a: dict[str, dict[str, np.ndarray]], b: dict[str, dict[str, np.ndarray]], profile: Profile
) -> list[dict[str, Any]]:
    """What one encoder's X_v tells over another's, a - b, on the same clips, seed by seed, with a verdict by rule."""
    out = []
    for split, dataset in SPLITS.items():
        for metric, direction in DIRECTIONS.items():
            s = intervals.stratified(a[split][metric] - b[split][metric], n=profile.eval.bootstrap)
            side = verdict.side(s.lo, s.hi, direction, len(a[split][metric]))
            out.append(
                {"dataset": dataset, "metric": metric, "difference": s.mean, "lo": s.lo, "hi": s.hi, "verdict": side}
            )
    return out


def _told(d: dict[str, Any]) -> str:
    size = f"{d['difference']:+.3f} [{d['lo']:+.3f}, {d['hi']:+.3f}]"
    return f"Three times the updates change the {d['metric']} ({d['dataset']}) by {size}: {d['verdict']}."
