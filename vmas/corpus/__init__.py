"""The procedural music-video corpus: score → soundfont audio, scene → frames, real mp4 files with ground truth.

It stands in for DISCO-MV where no web video can be had. A clip is a function of (corpus seed, split, index),
so any clip can be made again alone from its id. What is made here is known by construction: genre, tempo, key,
chords, every note onset, every beat and whether the picture shows it, every event without a beat.
"""

from vmas.corpus.genres import GENRES, SCENES
from vmas.corpus.make import CORPUS_VERSION, data_sha256, load_manifest, make, render_clip
from vmas.corpus.spec import SPLITS, ClipSpec, clip_id, parse_id, sample_spec

__all__ = [
    "CORPUS_VERSION",
    "GENRES",
    "SCENES",
    "SPLITS",
    "ClipSpec",
    "clip_id",
    "data_sha256",
    "load_manifest",
    "make",
    "parse_id",
    "render_clip",
    "sample_spec",
]
