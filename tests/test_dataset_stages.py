"""The builder's parts: frames looked at, cheap embedding, vocal removal, genres, segments, options and keys."""

import dataclasses
import time

import numpy as np
import pytest
import soxr
import torch
from dataset_files import FPS, PROFILE, RATE, checkpoints, music, options, pictures, video

from vmas import config, media, weights
from vmas.corpus import sample_spec
from vmas.corpus.scene import render_frames
from vmas.corpus.sound import render_audio
from vmas.dataset import dedupe, fingerprints, frames, genre, layout, stages, vocals
from vmas.dataset.manifest import Video
from vmas.errors import CheckpointError, DataError, MediaError, UsageError, WeightsUnavailable
from vmas.metrics.similarity import THRESHOLD, frame_similarity

CORPUS = config.load("mini").corpus


def scene(index: int, **shares) -> np.ndarray:
    """A corpus clip's pictures at one a second."""
    spec = sample_spec("test", index, dataclasses.replace(CORPUS, **shares), 5.0)
    return render_frames(dataclasses.replace(spec, fps=1.0))


def test_cheap_embedding_keeps_moving_clips_and_drops_still_ones():
    embed = frames.CheapEmbedder()
    moving = [frame_similarity(embed(scene(i))) for i in range(12)]
    still = [frame_similarity(embed(scene(i, static_share=1.0))) for i in range(3)]
    nearly = [frame_similarity(embed(scene(i, near_static_share=1.0))) for i in range(8)]
    assert max(moving) < THRESHOLD < 0.9 < min(nearly)
    assert min(still) == pytest.approx(1, abs=1e-6)


def test_cheap_embedding_is_unit_length_and_takes_empty_pictures():
    embed = frames.CheapEmbedder()
    black = np.zeros((2, 64, 64, 3), np.uint8)
    e = embed(np.concatenate([black, scene(0)[:1, :64, :64]]))
    assert e.shape == (3, 4227)
    np.testing.assert_allclose(np.linalg.norm(e, axis=1), 1, atol=1e-5)
    assert frame_similarity(embed(black)) == pytest.approx(1)
    assert e[0] @ e[2] < 0.2


def test_one_picture_is_as_still_as_a_video_can_be():
    embed = frames.build_embedder("cheap")
    moving = pictures(3)
    assert frames.similarity(moving[:1], embed) == 1
    assert frames.similarity(moving, embed) == frame_similarity(embed(moving)) < THRESHOLD == stages.Options.threshold


def test_sample_times():
    np.testing.assert_allclose(frames.sample_times(5.0), [0, 1, 2, 3, 4])
    np.testing.assert_allclose(frames.sample_times(1.0), [0, 0.5])
    many = frames.sample_times(640.0)
    assert len(many) == 64
    assert (many[0], many[-1]) == (5, 635)
    with pytest.raises(DataError):
        frames.sample_times(0)


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """Ten minutes at 12 fps, a new picture every 10 s."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 256, (60, 8, 8, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    return media.write_clip(path, shots.repeat(10 * FPS, 0), FPS, preset="ultrafast")


def test_keyframes_alone_are_fast_and_decide_the_same(long_video):
    def timed(act):
        start = time.process_time()
        return act(), time.process_time() - start

    embed = frames.CheapEmbedder()
    fast, quick = timed(lambda: frames.sample_frames(long_video, 64))
    every, slow = timed(lambda: sum(1 for _ in media.iter_frames(long_video, FPS, 64)))
    assert every == 600 * FPS
    assert quick < slow / 10
    exact = frame_similarity(embed(frames.sample_frames(long_video, 64, method="exact")))
    assert frame_similarity(embed(fast)) == pytest.approx(exact, abs=0.05)


def test_exact_frames_are_those_on_screen(tmp_path):
    path = video(tmp_path / "v.mp4", 0)
    got = frames.sample_frames(path, 64)
    want = pictures(0)[[0, FPS, 2 * FPS, 3 * FPS]]
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).mean() < 12  # 4:2:0 chroma of coarse noise
    part = frames.sample_frames(path, 64, start_s=2.0, duration_s=2.0)
    assert np.abs(part.astype(int) - want[2:]).mean() < 12
    with pytest.raises(MediaError, match="no second 9"):
        frames.sample_frames(path, 64, start_s=9.0)


@pytest.mark.slow  # transformers takes long to import
def test_clip_embedder_runs_with_a_given_model_and_asks_for_weights_without(monkeypatch, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    tiny = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    embed = frames.ClipEmbedder(CLIPVisionModelWithProjection(tiny), key="tiny", batch_size=2)
    x = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    assert embed(x).shape == (3, 512)
    np.testing.assert_allclose(embed(x[:1])[0], embed(x)[0], atol=1e-5)
    embed.model.save_pretrained(tmp_path / "copy" / "clip")  # a folder as the real weights come in
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path / "copy"))
    loaded = frames.build_embedder("clip")
    np.testing.assert_array_equal(loaded(x), frames.ClipEmbedder(embed.model, key="tiny")(x))
    assert -0.5 < frame_similarity(loaded(x)) <= 1
    assert loaded.key == frames.embedder_key("clip") != embed.key
    torch.manual_seed(1)
    other = CLIPVisionModelWithProjection(tiny)
    other.save_pretrained(tmp_path / "other" / "clip")
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path / "other"))
    assert frames.embedder_key("clip") != loaded.key  # other weights, other key
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsUnavailable, match=r"openai/clip-vit-base-patch32/.*MIT.*offline use --frames cheap"):
        frames.build_embedder("clip")
    with pytest.raises(UsageError, match="did you mean clip"):
        frames.build_embedder("clip2")


def test_classic_separator_takes_most_of_the_voice_and_leaves_the_length():
    cfg = dataclasses.replace(CORPUS, vocal_share=1.0)
    separate, left, harm = vocals.ClassicSeparator(), [], []
    for i in range(4):
        spec = sample_spec("test", i, cfg, 5.0)
        mix, voice = render_audio(spec, RATE), render_audio(spec, RATE, only_voice=True)
        out = separate(mix[None], RATE)
        assert out.shape == (1, len(mix))
        assert out.dtype == np.float32
        left.append(vocals.residual_vocals(out[0], mix - voice, voice))
        harm.append(vocals.si_sdr(out[0], mix - voice))
    assert vocals.residual_vocals(mix, mix - voice, voice) == pytest.approx(1)
    assert np.mean(left) < 0.4
    assert np.mean(harm) > 3


@pytest.mark.parametrize("n", [1, 700, 5000, 32001])
def test_classic_separator_takes_any_length_and_silence(n):
    separate = vocals.ClassicSeparator()
    wav = np.random.default_rng(0).normal(size=(2, n)).astype(np.float32)
    assert separate(wav, RATE).shape == (2, n)
    assert not separate(0 * wav, RATE).any()
    with pytest.raises(DataError):
        separate(wav[0], RATE)
    with pytest.raises(DataError):
        separate(wav * np.nan, RATE)


def test_si_sdr():
    r = np.random.default_rng(0).normal(size=1000)
    noise = np.random.default_rng(1).normal(size=1000)
    noise -= (noise @ r) / (r @ r) * r
    noise *= np.linalg.norm(r) / np.linalg.norm(noise)
    assert vocals.si_sdr(3 * (r + 0.1 * noise), r) == pytest.approx(20)


def test_demucs_runs_with_a_given_model_and_is_deterministic(monkeypatch, tmp_path):
    from demucs.pretrained import get_model

    torch.manual_seed(0)
    separate = vocals.DemucsSeparator(get_model("demucs_unittest"), key="unit")
    wav = music(0, 1.5)
    out = separate(wav, RATE)
    assert out.shape == wav.shape
    np.testing.assert_array_equal(out, separate(wav, RATE))
    assert separate(np.repeat(wav, 2, 0), RATE).shape == (2, wav.shape[1])
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsUnavailable, match=r"955717e8-8726e21a\.th.*MIT.*--vocals classic"):
        vocals.build_separator("demucs")
    path = tmp_path / "demucs" / "955717e8-8726e21a.th"
    path.parent.mkdir()
    path.write_bytes(b"another file")
    with pytest.raises(CheckpointError, match="sha256"):  # before it is unpickled
        vocals.build_separator("demucs")


def test_clap_asks_for_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsUnavailable, match="clap-htsat-unfused"):
        genre.build_tagger("clap")
    with pytest.raises(UsageError, match="did you mean tagger"):
        genre.build_tagger("tager")


class Tokens(dict):
    def to(self, device):
        return self


class Processor:
    """As ClapProcessor answers; the "tokens" say which prompt they are."""

    tokenizer = range(10)

    def __call__(self, text=None, audio=None, **kw):
        if text is not None:
            assert text[5] == "This audio is a jazz song"
            return Tokens(input_ids=torch.arange(len(text)))
        assert (kw["sampling_rate"], len(audio)) == (48000, 48000)
        return Tokens(input_features=torch.tensor([5]))


class Model(torch.nn.Module):
    def get_text_features(self, input_ids):
        return 3 * torch.eye(10)[input_ids]

    def get_audio_features(self, input_features):
        return 0.5 * torch.eye(10)[input_features]


def test_clap_takes_the_prompt_nearest_to_the_sound():
    tag = genre.ClapGenre(Model(), Processor(), key="given")
    scores = tag(np.zeros(RATE, np.float32), RATE)
    assert tag.labels[int(scores.argmax())] == "jazz"
    assert scores[5] == pytest.approx(1)


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    """(model, processor) of transformers, small and untrained, with a tokenizer of a few words."""
    import json

    from transformers import (  # fmt: skip
        ClapAudioConfig,
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        ClapProcessor,
        RobertaTokenizer,
        RobertaTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("tokenizer")
    signs = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyzTĠ"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(signs)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    cls = RobertaTokenizerFast or RobertaTokenizer
    tokenizer = cls.from_pretrained(folder)
    audio = ClapAudioConfig(
        patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[1, 1], hidden_size=16, projection_dim=16,
        num_mel_bins=64, spec_size=256, window_size=8, enable_fusion=False,
    )  # fmt: skip
    text = {"vocab_size": len(signs), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "projection_dim": 16}  # fmt: skip
    torch.manual_seed(0)
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio.to_dict(), projection_dim=16))
    processor = ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad"), tokenizer)
    return model, processor


@pytest.mark.slow
def test_clap_hears_all_of_a_long_clip_and_answers_the_same_each_time(clap):
    tag = genre.ClapGenre(*clap, key="random")
    rng = np.random.default_rng(0)
    long = rng.normal(0, 0.1, 23 * RATE).astype(np.float32) * np.repeat(
        [1, 0.2, 0.05], (10 * RATE, 10 * RATE, 3 * RATE)
    )
    scores = tag(long, RATE)
    assert scores.shape == (10,)
    assert np.abs(scores).max() <= 1 + 1e-6
    np.random.seed(3)  # what the processor would cut by
    np.testing.assert_array_equal(tag(long, RATE), scores)
    short = tag(long[: 8 * RATE], RATE)
    assert not np.allclose(short, scores, atol=1e-7)
    with torch.inference_mode():
        parts = []
        for x in (long[: 10 * RATE], long[10 * RATE : 20 * RATE], long[20 * RATE :]):
            wav = soxr.resample(x, RATE, 48000).astype(np.float32)
            inputs = clap[1](audio=wav, sampling_rate=48000, return_tensors="pt")
            got = clap[0].get_audio_features(**inputs)
            got = got if isinstance(got, torch.Tensor) else got.pooler_output
            parts.append(torch.nn.functional.normalize(got, dim=-1))
        mean = torch.nn.functional.normalize(torch.cat(parts).mean(0, keepdim=True), dim=-1)
        np.testing.assert_allclose(scores, (mean @ tag.prompts.T)[0].numpy(), atol=1e-3)


@pytest.mark.slow
def test_clap_without_its_tokenizer_is_refused_and_other_weights_have_another_key(clap, tmp_path, monkeypatch):
    model, processor = clap
    folder = tmp_path / "clap"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if not (folder / "preprocessor_config.json").is_file():  # transformers 5 has one file for the whole processor
        processor.feature_extractor.save_pretrained(folder)
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    for name in weights.get("clap_htsat_unfused").files:
        if not (folder / name).is_file() and name != weights.PICKLED:
            (folder / name).write_text("{}" if name.endswith("json") else "#version: 0.2\n")
    key = genre.tagger_key("clap")
    with pytest.raises(WeightsUnavailable, match="tokenizer"):  # a few words: what a copy without its vocabulary has
        genre.build_tagger("clap")
    monkeypatch.setattr(genre, "SMALLEST_VOCABULARY", 10)
    assert genre.build_tagger("clap").key == key
    assert key.startswith("clap-htsat-unfused-")
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert genre.tagger_key("clap") != key


def test_windows_of_ten_seconds():
    x = np.arange(25 * 48000, dtype=np.float32)
    assert [len(w) / 48000 for w in genre.windows(x)] == [10, 10, 5]
    np.testing.assert_array_equal(np.concatenate(genre.windows(x)), x)
    assert [len(w) for w in genre.windows(x[: 480000 + 100])] == [480000]
    assert [len(w) for w in genre.windows(x[:100])] == [100]


def test_keys_come_from_files_without_a_model(tmp_path, monkeypatch):
    o = options(checkpoints(tmp_path), skip=())
    tools = stages.Tools(o, device="cuda")  # which is not there
    keys = tools.keys()
    assert not {"embedder", "separator", "tagger", "codec"} & vars(tools).keys()
    here = stages.Tools(o)
    assert keys == {
        "similarity": here.embedder.key,
        "vocals": here.separator.key,
        "genre": here.tagger.key,
        "tokens": here.codec.sha256,
    }
    file = tmp_path / "codec" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="sha256"):
        tools.keys()
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path / "none"))
    for changes in ({"frames": "clip"}, {"vocals": "demucs"}, {"genre": "clap"}):
        with pytest.raises(WeightsUnavailable):
            stages.Tools(dataclasses.replace(o, skip=("tokens",), **changes)).keys()


def test_segments_follow_each_other_and_leave_the_rest_out():
    o = stages.Options(PROFILE)
    v = Video("a", "", "a", start=2.0)
    assert stages.segment_starts(v, 4.0, o) == [2.0, 3.5]
    assert stages.segment_starts(v, 4.46, o) == [2.0, 3.5, 5.0]  # 40 ms short: containers round
    assert stages.segment_starts(v, 1.0, o) == []
    few = dataclasses.replace(o, clips_per_video=2)
    assert stages.segment_starts(v, 15.0, few) == [2 + 1.5 * 2, 2 + 1.5 * 7]
    assert stages.clip_name(v, 3.5) == "a-00003500"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"frames": "clap"}, r"unknown frames 'clap': did you mean (clip|cheap)"),
        ({"vocals": "demuks"}, r"unknown vocals 'demuks': did you mean demucs\?"),
        ({"genre": "tager"}, r"unknown genre 'tager': did you mean tagger\?"),
        ({"threshold": 70.0}, "from 0 to 1, or inf, got 70"),
        ({"threshold": float("nan")}, "from 0 to 1"),
        ({"skip": ("similarity",), "val": 1}, "chosen by their frame similarity, which is left out: give --quality"),
    ],
)
def test_options_that_mean_nothing_are_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        stages.Options(PROFILE, **wrong)


def test_held_out_videos_must_leave_some():
    stages.Options(PROFILE, ("similarity",), val=1, quality="correspondence").check(2)
    stages.Options(PROFILE, threshold=1.0).check(0)
    with pytest.raises(UsageError, match="1 videos for validation and 2 for testing of 3 leave none to train on"):
        stages.Options(PROFILE, val=1, test=2).check(3)


def test_versions_and_options_are_in_the_keys(monkeypatch):
    o = stages.Options(PROFILE)
    screen, make = layout.screen_key(o, {}), layout.make_key(o, {})
    for changes in (
        {"threshold": 0.8},
        {"shard_size": 9},
        {"val": 1},
        {"clips_per_video": 1},
    ):  # which videos and clips
        other = dataclasses.replace(o, **changes)
        assert (layout.screen_key(other, {}), layout.make_key(other, {})) == (screen, make)
        assert layout.plan(other, {}) != layout.plan(o, {})
    assert layout.screen_key(o, {"similarity": "clip"}) != screen
    assert layout.make_key(o, {"similarity": "clip"}) == make != layout.make_key(o, {"tokens": "codec"})
    for part, changes in (("clip", {"fps": 5.0}), ("align", {"delta": 9}), ("corpus", {"crf": 40})):
        profile = dataclasses.replace(PROFILE, **{part: dataclasses.replace(getattr(PROFILE, part), **changes)})
        assert layout.make_key(dataclasses.replace(o, profile=profile), {}) != make
    held = dataclasses.replace(o, val=1, quality="correspondence")
    held_screen, held_plan, plan = layout.screen_key(held, {}), layout.plan(held, {}), layout.plan(o, {})
    monkeypatch.setattr(stages, "SPLITS_VERSION", 99)
    assert (layout.screen_key(o, {}), layout.make_key(o, {}), layout.plan(o, {})) == (screen, make, plan)
    assert layout.screen_key(held, {}) != held_screen
    assert layout.plan(held, {}) != held_plan
    monkeypatch.setitem(stages.VERSIONS, "beats", 99)
    assert layout.screen_key(o, {}) == screen
    assert layout.make_key(o, {}) != make


def test_decoding_is_timed_apart_from_the_models(tmp_path):
    clip = dataclasses.replace(PROFILE.clip, flow_method="raft", flow_size=PROFILE.clip.img_size + 8)
    o = options(checkpoints(tmp_path), profile=dataclasses.replace(PROFILE, clip=clip))
    row, tools = Video("v", str(video(tmp_path / "v.mp4", 0)), "v"), stages.Tools(o)
    state = stages.look(row, {}, tools)
    assert tools.take_seconds().keys() == {"probe", "decode"}
    state = stages.judge(row, state, tools)
    assert tools.take_seconds().keys() == {"similarity"}
    tools.raft = lambda frames: np.ones(len(frames) - 1, np.float32)
    item = stages.Clip(row, 0.0, {})
    state = stages.decode(item, {}, tools)
    assert state["frames"].shape[1] == clip.flow_size
    assert tools.take_seconds().keys() == {"segments", "shards"}
    state = stages.infer(item, state, tools)
    assert tools.take_seconds().keys() == {"genre", "tokens", "beats"}
    stages.finish(item, state, tools)
    assert tools.take_seconds().keys() == {"onsets", "shards"}
    (tmp_path / "v.mp4").unlink()
    with pytest.raises(MediaError), tools.timed("similarity", "decode"):
        frames.watch(row.path, 64)
    assert tools.stage == "similarity"  # what the ledger says


def known(name, video="", track="", prints=None, quality=0.0):
    return dedupe.Known(name, video or name, track, prints or fingerprints.Prints(), quality)


def test_groups_are_transitive_and_duplicates_need_picture_and_sound():
    rng = np.random.default_rng(0)
    words, times = rng.integers(1, 2**32, (2, 80), np.uint32), 250 * np.arange(20, dtype=np.uint32)
    hashes = rng.integers(1, 2**63, 20, np.uint64)
    none = fingerprints.Prints()
    rows = [
        known("a", prints=fingerprints.Prints(times, hashes, words[0])),
        known("b", track="x y", prints=dataclasses.replace(none, words=words[0][16:])),
        known("c", track="x y"),
        known("d", prints=fingerprints.Prints(times[8:], hashes[8:], words[0][32:])),
        known("e", prints=dataclasses.replace(none, words=words[1])),
    ]
    duplicates, group = dedupe.compare(rows)
    assert duplicates == {3: 0}
    assert group == [0, 0, 0, 0, 4]
    assert dedupe.track_key("The  Band", "Song_1!") == dedupe.track_key("the band", "song 1")
    assert dedupe.track_key("The Band", " ") == ""


def test_held_out_videos_are_the_best_of_their_groups_whatever_the_order():
    rows = [known(f"v{i}", quality=q) for i, q in enumerate((0.1, 0.9, 0.5, 0.8, 0.7, 0.2))]
    group = [0, 1, 1, 3, 4, 5]
    splits = dedupe.hold_out(rows, group, val=1, test=2)
    assert splits == ["train", "val", "", "test", "test", "train"]
    back = dedupe.hold_out(rows[::-1], [{0: 5, 1: 3, 3: 2, 4: 1, 5: 0}[g] for g in group][::-1], val=1, test=2)
    assert back[::-1] == splits
    assert dedupe.hold_out(rows, group, 9, 9).count("train") == 0
