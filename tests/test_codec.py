"""The codec: interface, parity with audiocraft, checkpoints, broken input, and that training lowers the loss."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from vmas import checkpoint, codec, compiled, config, paths
from vmas.errors import CheckpointError, ConfigError, DataError, WeightsUnavailable

TINY = {"n_q": 3, "bins": 16, "dim": 8, "width": 16, "blocks": 1, "n_mels": 20}
RATE = 32000


def tiny_config(**changes) -> config.CodecConfig:
    return config.load("smoke", {"codec": {**TINY, **changes}}).codec


def music(clips: int = 4, seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """int16 [clips,samples]: decaying tones at regular times over a soft hiss, all different."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    out = []
    for _ in range(clips):
        wav = 0.003 * rng.standard_normal(len(t))
        for start in np.arange(0.1, seconds, rng.uniform(0.3, 0.5)):
            pitch, age = rng.choice([220, 277, 330, 440, 660]), np.maximum(t - start, 0)
            wav += (t >= start) * 0.4 * np.exp(-8 * age) * np.sin(2 * np.pi * pitch * age)
        out.append(wav)
    return np.round(np.clip(np.stack(out), -1, 1) * 32767).astype(np.int16)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    model = codec.FrameCodec(tiny_config()).eval()
    model.E.copy_(torch.randn(model.E.shape))
    return model


@pytest.fixture(scope="module")
def mini():
    folder = paths.ROOT / "results" / "checkpoints" / "mini" / "codec"
    if not (folder / checkpoint.MANIFEST).is_file():
        pytest.skip("the mini codec is not trained")
    return codec.load_codec(folder)


# --- interface


@pytest.mark.parametrize("samples", [1, 639, 640, 641, 32000, 32001])
def test_lengths(tiny, samples):
    wav = 0.1 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(1))
    codes = tiny.encode(wav)
    T = -(-samples // 640)
    assert codes.shape == (2, 3, T)
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 16
    back = tiny.decode(codes)
    assert back.shape == (2, 1, T * 640)
    assert torch.isfinite(back).all()


def test_attributes_and_codebooks(tiny):
    assert (tiny.sample_rate, tiny.frame_rate, tiny.n_q, tiny.bins, tiny.dim) == (RATE, 50.0, 3, 16, 8)
    assert tiny.codebooks().shape == (3, 16, 8)
    assert not tiny.codebooks().requires_grad


def test_a_clip_does_not_depend_on_its_batch(tiny):
    wav = codec.as_float(music(3))[:, None]
    together = tiny.encode(wav)
    alone = torch.cat([tiny.encode(w[None]) for w in wav])
    assert (together == alone).float().mean() > 0.999  # near ties may round differently
    assert torch.equal(together, tiny.encode(wav))
    assert torch.allclose(tiny.decode(together), torch.cat([tiny.decode(c[None]) for c in together]), atol=1e-5)


def test_quantizing_entries_gives_them_back(tiny):
    """A sum of entries small enough not to disturb the earlier choices is coded by these very entries."""
    tiny.E.copy_(tiny.E * torch.tensor([1.0, 1e-2, 1e-4])[:, None, None])
    codes = torch.randint(16, (2, 3, 50), generator=torch.Generator().manual_seed(0))
    assert torch.equal(tiny.quantize(tiny.embed(codes)), codes)


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (torch.full((1, 1, 640), float("nan")), "NaN"),
        (torch.full((1, 1, 640), float("inf")), "NaN or infinite"),
        (torch.zeros(1, 2, 640), "mono"),
        (torch.zeros(1, 640), "mono"),
        (torch.zeros(1, 1, 0), "N > 0"),
    ],
)
def test_bad_waveforms(tiny, wav, message):
    with pytest.raises(DataError, match=message):
        tiny.encode(wav)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((1, 3, 5), 16), r"0\.\.15; got 16\.\.16"),
        (torch.full((1, 3, 5), -1), r"got -1\.\.-1"),
        (torch.zeros(1, 2, 5, dtype=torch.long), r"\[B,3,T\]"),
    ],
)
def test_bad_codes(tiny, codes, message):
    with pytest.raises(DataError, match=message):
        tiny.decode(codes)


def test_silence_is_finite(tiny):
    assert torch.isfinite(tiny.decode(tiny.encode(torch.zeros(1, 1, 6400)))).all()


def test_unknown_kinds_and_hops():
    with pytest.raises(ConfigError, match="'frame' or 'encodec'"):
        codec.build_codec(tiny_config(kind="mp3"))
    with pytest.raises(ConfigError, match="hop must be a multiple"):
        codec.build_codec(tiny_config(hop=641))
    with pytest.raises(ConfigError, match="hop must be one of"):
        codec.build_codec(tiny_config(kind="encodec", hop=600))


# --- parts


def test_log_mel_equals_librosa():
    librosa = compiled.librosa()

    wav = codec.as_float(music(1))[0].numpy()
    mel = codec.LogMel(RATE, 1024, 320, 40)
    edge = (1024 - 320) // 2
    ref = librosa.feature.melspectrogram(
        y=np.pad(wav, edge), sr=RATE, n_fft=1024, hop_length=320, center=False, power=1.0, n_mels=40
    )
    ours = mel.magnitudes(torch.from_numpy(wav)[None])[0].numpy()
    ours = ours / (RATE / 1024 / np.hanning(1025)[:-1].sum())
    assert ours.shape == ref.shape
    np.testing.assert_allclose(ours, ref, rtol=1e-3, atol=1e-3)


def test_inverse_stft_equals_torch():
    """Away from the ends ours is torch.istft with another centring of the frames."""
    head = codec.InverseSTFT(160)
    g = torch.Generator().manual_seed(0)
    log_magnitude, phase = torch.randn(1, 20, 321, generator=g), 3 * torch.randn(1, 20, 321, generator=g)
    ours = head(torch.cat([log_magnitude, phase], -1))[0]
    spectrum = torch.polar(log_magnitude.exp(), phase).transpose(1, 2)
    ref = torch.istft(spectrum, 640, 160, window=head.window, center=True)[0]
    # torch trims n_fft/2 in front, ours (n_fft-hop)/2
    shift = 320 - 240
    assert ours.shape == (20 * 160,)
    assert torch.allclose(ours[640:-640], ref[640 - shift :][: len(ours) - 1280], atol=1e-5)


def test_onset_f_counts_one_to_one():
    def clicks(times):
        wav = np.zeros(3 * RATE, np.float32)
        for s in times:
            wav[round(s * RATE) :][:200] = np.hanning(200)
        return wav

    a = clicks([0.5, 1.0, 1.5, 2.0])
    assert codec.onset_f(a, a, RATE, 640) == 1.0
    assert codec.onset_f(a, clicks([0.5, 1.0, 1.5, 2.2]), RATE, 640) == pytest.approx(0.75)
    assert codec.onset_f(a, clicks([0.54, 1.04, 1.54, 2.04]), RATE, 640) == 1.0
    assert np.isnan(codec.onset_f(np.zeros(RATE, np.float32), np.zeros(RATE, np.float32), RATE, 640))


def test_report_of_a_perfect_codec_is_perfect(tiny):
    wavs = music(2)

    class Lossless(codec.FrameCodec):
        def decode(self, codes):
            return codec.as_float(wavs)[:, None]

    tiny.__class__ = Lossless
    report = codec.codec_report(tiny, wavs)
    assert report["log_mel_db"] == report["log_mel_db_80"] == 0
    assert report["onset_f"] == 1
    assert report["gain_db"] == 0
    assert 0 < report["codes_used"] <= 1


# --- checkpoints


def test_saved_and_loaded_codec_is_the_same(tiny, tmp_path):
    folder = codec.save_codec(tmp_path / "codec", tiny, seed=3, training={"steps": 1}, half=False)
    again = codec.load_codec(folder)
    wav = codec.as_float(music(2))[:, None]
    assert torch.equal(again.encode(wav), tiny.encode(wav))
    assert again.sha256 == tiny.sha256 == json.loads((folder / "manifest.json").read_text())["sha256"]
    assert not any(p.requires_grad for p in again.parameters())
    assert not again.training


def test_altered_and_damaged_checkpoints(tiny, tmp_path):
    folder = codec.save_codec(tmp_path / "codec", tiny)
    weights = folder / checkpoint.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="sha256"):
        codec.load_codec(folder)

    weights.write_bytes(whole[: len(whole) // 2])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] = checkpoint.file_sha256(weights)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        codec.load_codec(folder)

    weights.write_bytes(whole)
    manifest |= {"sha256": checkpoint.file_sha256(weights), "config": {**manifest["config"], "width": 24}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="another architecture"):
        codec.load_codec(folder)

    manifest["config"] = {"kind": "frame"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="no codec of this version"):
        codec.load_codec(folder)

    with pytest.raises(CheckpointError, match="no checkpoint here"):
        codec.load_codec(tmp_path / "nothing")


# --- the committed mini codec


def test_mini_codec_fits_its_profile(mini):
    cfg = config.load("mini").codec
    assert dataclasses.asdict(mini.cfg) == dataclasses.asdict(cfg)
    size = (paths.ROOT / "results" / "checkpoints" / "mini" / "codec" / checkpoint.WEIGHTS).stat().st_size
    assert size < 7.5e6


def test_mini_codec_on_clips_it_never_heard(mini):
    """Rendered validation clips agree with what the manifest says of the whole split."""
    from vmas.corpus import sample_spec
    from vmas.corpus.sound import render_audio

    profile = config.load("mini")
    specs = [sample_spec("val", i, profile.corpus, profile.clip.seconds) for i in range(8)]
    wavs = np.stack([np.pad(render_audio(s, RATE), (0, 160000))[:160000] for s in specs])
    report = codec.codec_report(mini, wavs)
    told = checkpoint.read_manifest(paths.checkpoints("mini") / "codec")["training"]["report"]
    assert report["onset_f"] == pytest.approx(told["onset_f"], abs=0.08)
    assert report["gain_db"] == pytest.approx(told["gain_db"], abs=1.5)
    assert report["log_mel_db"] == pytest.approx(told["log_mel_db"], abs=0.7)
    assert report["log_mel_db_80"] == pytest.approx(told["log_mel_db_80"], abs=1.5)


def test_coding_twice_stays_close_to_coding_once(mini):
    wav = codec.as_float(music(4, seconds=3.0))[:, None]
    once = mini.decode(mini.encode(wav))
    twice = mini.decode(mini.encode(once))
    mel = codec.LogMel(RATE, 2048, 320, 80)
    first, second = ((mel(a[:, 0]) - mel(b[:, 0])).abs().mean() for a, b in ((wav, once), (once, twice)))
    assert second < 1.5 * first


# --- training and audiocraft (imports audiocraft: slow)


@pytest.mark.slow
def test_codes_equal_audiocrafts_quantizer():
    from vmas.codec_train import build_quantizer, codebook_tables

    cfg = tiny_config(n_q=4, bins=64, dim=32)
    quantizer = build_quantizer(cfg).eval()
    g = torch.Generator().manual_seed(0)
    for layer in quantizer.vq.layers:
        layer._codebook.embed.copy_(torch.randn(64, 32, generator=g))
    ours = codec.FrameCodec(cfg)
    ours.E.copy_(codebook_tables(quantizer))
    latent = torch.randn(4, 100, 32, generator=g)
    codes = quantizer.encode(latent.transpose(1, 2))
    assert torch.equal(ours.quantize(latent), codes)
    assert torch.allclose(ours.embed(codes), quantizer.decode(codes).transpose(1, 2), atol=1e-6)


@pytest.mark.slow
def test_codebooks_start_at_the_data_and_dead_entries_come_back():
    from vmas.codec_train import build_quantizer, codebook_tables, revive, start_codebooks

    cfg = tiny_config()
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(8, cfg.dim, 50, generator=g)
    quantizer = build_quantizer(cfg)
    start_codebooks(quantizer, latent, latent.shape[0] * latent.shape[2])
    before = codebook_tables(quantizer)
    error = (latent - quantizer.eval().decode(quantizer.encode(latent))).square().mean()
    assert error < 0.6 * latent.square().mean()
    quantizer.train()(latent, 50)
    # one update with the same data must not move the entries far (audiocraft's own start shrinks them)
    assert (codebook_tables(quantizer) - before).norm() < 0.1 * before.norm()

    book = quantizer.vq.layers[0]._codebook
    book.embed[:4], book.embed_avg[:4], book.cluster_size[:4] = 1e3, 0, 0
    assert revive(quantizer, latent, g) >= 4
    assert book.embed[:4].abs().max() < 10
    quantizer(latent, 50)
    assert book.embed[:4].abs().max() < 10
    assert revive(quantizer, latent, g) < 4


@pytest.mark.slow
def test_training_lowers_the_loss_resumes_and_repeats(tmp_path):
    from vmas.codec_train import train_codec

    profile = config.load(
        "smoke", {"codec": {**TINY, "train_steps": 40, "batch_size": 4, "segment_s": 0.5, "lr": 3e-3}}
    )
    wavs = music(6)

    class Stop(Exception):
        pass

    record = train_codec(profile, wavs, tmp_path / "a", val=wavs[:2], progress=False)
    assert [step for step, _ in record["curve"]] == [20, 40]
    assert record["loss"]["mel_nepers"] > record["curve"][-1][1]  # the mean of all 40 steps lies above the end
    assert record["curve"][-1][1] < 0.8 * record["curve"][0][1]
    assert not (tmp_path / "a.state").exists()
    assert record["report"]["clips"] == 2
    loaded = codec.load_codec(tmp_path / "a")
    assert checkpoint.read_manifest(tmp_path / "a", "codec")["training"]["report"] == record["report"]

    # interrupted after step 20 of 40, then resumed
    from vmas import codec_train

    save, steps = codec_train.save_state, []

    def stop(folder, state):
        save(folder, state)
        steps.append(state["step"])
        raise Stop

    codec_train.save_state = stop
    try:
        with pytest.raises(Stop):
            train_codec(profile, wavs, tmp_path / "b", val=wavs[:2], progress=False, checkpoint_every=20)
    finally:
        codec_train.save_state = save
    assert steps == [20]
    assert not (tmp_path / "b").exists()
    train_codec(profile, wavs, tmp_path / "b", val=wavs[:2], progress=False, checkpoint_every=20)
    assert codec.load_codec(tmp_path / "b").sha256 == loaded.sha256


@pytest.mark.slow
def test_training_refuses_what_it_cannot_use(tmp_path):
    from vmas.codec_train import train_codec

    profile = config.load("smoke", {"codec": {**TINY, "train_steps": 4}})
    with pytest.raises(DataError, match="at least 32000 samples"):
        train_codec(profile, music(2, seconds=0.5), tmp_path / "c", progress=False)
    with pytest.raises(DataError, match="NaN"):
        train_codec(profile, np.full((2, 64000), np.nan, np.float32), tmp_path / "c", progress=False)
    with pytest.raises(ConfigError, match="only 'frame'"):
        train_codec(config.load("paper"), music(2), tmp_path / "c", progress=False)
    assert not (tmp_path / "c").exists()


ENCODEC = {"kind": "encodec", "n_q": 4, "bins": 64, "dim": 32, "width": 4}


def audiocraft_model(cfg, strides=(8, 5, 4, 4)):
    """audiocraft's own builder on its own configuration files' values."""
    from audiocraft.models import builders
    from omegaconf import OmegaConf

    seanet = {
        "dimension": cfg.dim, "channels": 1, "causal": False, "n_filters": cfg.width, "n_residual_layers": 1,
        "ratios": list(strides), "activation": "ELU", "activation_params": {"alpha": 1.0}, "norm": "weight_norm",
        "norm_params": {}, "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 7, "dilation_base": 2,
        "pad_mode": "constant", "true_skip": True, "compress": 2, "lstm": 2, "disable_norm_outer_blocks": 0,
        "encoder": {},
        "decoder": {"trim_right_ratio": 1.0, "final_activation": None, "final_activation_params": None},
    }  # fmt: skip
    about = {
        "compression_model": "encodec",
        "encodec": {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": RATE, "channels": 1, "causal": False},
        "seanet": seanet,
        "rvq": {"n_q": cfg.n_q, "q_dropout": False, "bins": cfg.bins, "kmeans_init": False},
        "device": "cpu",
    }
    torch.manual_seed(0)
    return builders.get_compression_model(OmegaConf.create(about)).eval(), about


@pytest.mark.slow
def test_encodec_equals_audiocraft(tmp_path):
    import yaml

    cfg = tiny_config(**ENCODEC)
    theirs, about = audiocraft_model(cfg)
    exported = tmp_path / "compression_state_dict.bin"
    torch.save({"best_state": theirs.state_dict(), "xp.cfg": yaml.safe_dump(about), "exported": True}, exported)
    ours = codec.load_encodec(exported, cfg)
    for samples in (6400, 6401, 7000):
        wav = 0.3 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(samples))
        codes = ours.encode(wav)
        assert torch.equal(codes, theirs.encode(wav)[0])
        assert codes.shape == (2, 4, -(-samples // 640))
        with torch.no_grad():
            assert torch.equal(ours.decode(codes), theirs.decode(codes))
        assert ours.decode(codes).shape[-1] == codes.shape[-1] * 640
    embedded = sum(torch.nn.functional.embedding(codes[:, k], ours.codebooks()[k]) for k in range(4))
    assert torch.allclose(embedded.transpose(1, 2), theirs.decode_latent(codes), atol=1e-6)
    with pytest.raises(DataError, match="NaN"):
        ours.encode(torch.full((1, 1, 640), float("nan")))
    again = codec.load_codec(codec.save_codec(tmp_path / "saved", ours, half=False))
    assert torch.equal(again.encode(wav), codes)


@pytest.mark.slow
def test_encodec_equals_transformers(tmp_path):
    from transformers import EncodecConfig, EncodecModel

    cfg = tiny_config(**ENCODEC)
    torch.manual_seed(0)
    theirs = EncodecModel(
        EncodecConfig(
            target_bandwidths=[50 * 4 * 6 / 1000], sampling_rate=RATE, hidden_size=cfg.dim, codebook_dim=cfg.dim,
            codebook_size=cfg.bins, num_filters=cfg.width, upsampling_ratios=[8, 5, 4, 4], use_causal_conv=False,
            use_conv_shortcut=False, pad_mode="reflect",
        )
    ).eval()  # fmt: skip
    for layer in theirs.quantizer.layers:
        layer.codebook.embed.normal_()
    theirs.save_pretrained(tmp_path / "hf")
    ours = codec.load_encodec(tmp_path / "hf" / "model.safetensors", cfg)
    wav = 0.3 * torch.randn(2, 1, 6400, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        codes = theirs.encode(wav).audio_codes[0]
        assert torch.equal(ours.encode(wav), codes)
        assert torch.allclose(ours.decode(codes), theirs.decode(codes[None], [None])[0], atol=1e-5)


@pytest.mark.slow
def test_encodec_weights_that_are_absent_damaged_or_foreign(tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    cfg = tiny_config(**ENCODEC, weights="encodec_32khz")
    with pytest.raises(WeightsUnavailable, match=r"encodec-32khz.*facebook/musicgen-medium.*CC-BY-NC 4\.0"):
        codec.pretrained_codec(cfg)
    with pytest.raises(ConfigError, match="names no published weights"):
        codec.pretrained_codec(tiny_config(**ENCODEC))
    (tmp_path / "encodec-32khz-state_dict.bin").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        codec.pretrained_codec(cfg)
    torch.save({"pretrained": "facebook/encodec_32khz"}, tmp_path / "pointer.bin")
    with pytest.raises(CheckpointError, match="no weights of its own"):
        codec.load_encodec(tmp_path / "pointer.bin", cfg)
    torch.save({"best_state": {"x": torch.zeros(1)}}, tmp_path / "other.bin")
    with pytest.raises(CheckpointError, match="another architecture"):
        codec.load_encodec(tmp_path / "other.bin", cfg)


@pytest.mark.slow
def test_encodec_of_the_paper_has_its_sizes():
    ours = codec.build_codec(config.load("paper").codec)
    assert (ours.frame_rate, ours.n_q, ours.bins, ours.dim) == (50.0, 4, 2048, 128)
    assert sum(p.numel() for p in ours.parameters()) == 56_884_674
    assert ours.codebooks().numel() == 4 * 2048 * 128
