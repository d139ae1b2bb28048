"""Profiles: strict keys, derived lengths, appendix B."""

import pytest

from vmas import config
from vmas.errors import ConfigError, UsageError


@pytest.mark.parametrize(("name", "frames", "tokens", "video_tokens"), [("paper", 96, 500, 48), ("mini", 48, 250, 24)])
def test_derived_lengths(name, frames, tokens, video_tokens):
    p = config.load(name)
    assert (p.clip.num_frames, p.num_tokens, p.num_video_tokens) == (frames, tokens, video_tokens)


def test_paper_profile_is_appendix_b():
    p = config.load("paper")
    assert p.encoder.depths == (2, 3, 16, 3)
    assert p.encoder.pool == ((4, 4), (7, 7), (2, 2))
    assert p.encoder.out_dim == 768
    assert (p.decoder.dim, p.decoder.layers, p.decoder.heads) == (1536, 48, 24)
    assert (p.codec.n_q, p.codec.bins, p.codec.frame_rate) == (4, 2048, 50.0)
    assert (p.align.alpha, p.align.beta) == (0.05, 0.25)
    assert (p.train.warmup_steps, p.train.ema_decay, p.train.batch_size) == (4000, 0.99, 8)
    assert p.decoder.time_bias_s is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian": {}}, "unknown key trian: did you mean train"),
        ({"train": {"stepz": 1}}, "unknown key train.stepz: did you mean steps"),
        ({"train": {"steps": "many"}}, "train.steps must be int"),
        ({"train": {"steps": True}}, "train.steps must be int"),
        ({"align": {"alpha": float("nan")}}, "align.alpha must be finite"),
        ({"encoder": {"pool": 3}}, "encoder.pool must be a list"),
        ({"encoder": {"patch_kernel": [3, 7]}}, "encoder.patch_kernel must have 3 entries"),
        ({"clip": 5}, "clip must be a mapping"),
    ],
)
def test_bad_values_name_the_key(change, message):
    with pytest.raises(ConfigError, match=message):
        config.load("mini", change)


def test_unknown_profile_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean mini"):
        config.load("minni")


def test_file_errors(tmp_path):
    with pytest.raises(ConfigError, match="no such config file"):
        config.load(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match="missing key status"):
        config.load(str(tmp_path / "x.yaml"))


def test_own_profile_by_path(tmp_path):
    text = (config.paths.CONFIGS / "mini.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("name: mini", "name: mine"))
    assert config.load(str(tmp_path / "mine.yaml")).name == "mine"


def test_hash_follows_the_content():
    a, b = config.load("mini"), config.load("mini", {"train": {"steps": 7}})
    assert config.sha256(a) == config.sha256(config.load("mini"))
    assert config.sha256(a) != config.sha256(b)
    assert config.sha256(a.codec, 1) == config.sha256(b.codec, 1)
