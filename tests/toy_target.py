"""A target small enough for tests: it counts how often it is computed."""

from vmas import records
from vmas.config import sha256
from vmas.records import Record, Row

calls: list[int] = []
version = 1


def key(profile, seed=0):
    return sha256(profile, seed, version)


def compute(profile, seed=0, device="auto", progress=True, say=print):
    calls.append(seed)
    rows = (Row("VMAs (ours)", "test", "KL", "down", 0.5 + seed, (0.4, 0.6 + seed), 24, 1, None, None, profile.status),)
    prov = records.provenance("vmas reproduce toy", 0.0, "a", "b", "c")
    return Record("toy", profile.name, "Toy", key(profile, seed), rows, prov, {})
