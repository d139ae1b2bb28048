"""VMAs as a whole: losses, generation, checkpoints; on a tiny model with random weights."""

import json

import numpy as np
import pytest
import torch

from vmas import checkpoint, config, losses
from vmas.codec import build_codec, save_codec
from vmas.errors import CheckpointError, DataError
from vmas.model import VMAs
from vmas.training.data import ClipDataset
from vmas.training.optim import freeze
from vmas.training.stages import calibrate, seen_once
from vmas.training.tasks import SCENE_WEIGHT, MotionTask, MusicTask, VMAsTask, clip_weights, draw_pieces


def tiny(**align):
    p = config.load("smoke", {"align": align})
    torch.manual_seed(0)
    codec = build_codec(p.codec).eval()
    with torch.no_grad():
        codec.E.normal_()
    return p, VMAs(p, codec)


@pytest.fixture(scope="module")
def batch():
    p = config.load("smoke")
    g = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (2, p.clip.num_frames, 64, 64, 3), dtype=torch.uint8, generator=g)
    codes = torch.randint(0, p.codec.bins, (2, p.codec.n_q, p.num_tokens), generator=g)
    return frames, codes


def test_objective_is_beta_contrastive_plus_generative(batch):
    p, model = tiny()
    out = model.eval()(*batch, torch.rand(2, p.num_tokens))
    assert float(out["loss"]) == pytest.approx(float(out["L_g"]) + p.align.beta * float(out["L_c"]), rel=1e-6)
    assert abs(float(out["ce"]) - np.log(p.codec.bins)) < 1.5  # untrained: near the entropy of a uniform guess


def test_uniform_weights_are_plain_cross_entropy(batch):
    p, model = tiny()
    out = model.eval()(*batch, torch.ones(2, p.num_tokens))
    assert float(out["L_g"]) == pytest.approx(float(out["ce"]), rel=1e-6)


def test_beat_weighting_off_ignores_the_weights(batch):
    p, model = tiny(beat_weighting=False)
    out = model.eval()(*batch, torch.zeros(2, p.num_tokens))
    assert float(out["L_g"]) == pytest.approx(float(out["ce"]), rel=1e-6)


def test_dropped_condition_ignores_the_video_and_skips_the_contrast(batch):
    _, model = tiny()
    frames, codes = batch
    a = model.eval()(frames, codes, None, conditioned=False)
    b = model(255 - frames, codes, None, conditioned=False)
    assert float(a["L_c"]) == 0.0
    assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-6)
    assert float(model(frames, codes)["ce"]) != float(model(255 - frames, codes)["ce"])


@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("contrastive", [True, False])
@pytest.mark.parametrize("beat_weighting", [True, False])
def test_every_trained_parameter_gets_a_gradient_or_zero_never_nan(batch, contrastive, beat_weighting, conditioned):
    p, model = tiny(contrastive=contrastive, beat_weighting=beat_weighting)
    model(*batch, torch.rand(2, p.num_tokens), conditioned)["loss"].backward()
    for name, parameter in model.named_parameters():
        if not contrastive and name.startswith("video_to_music."):
            assert not parameter.requires_grad  # nothing reads it
            continue
        assert parameter.requires_grad
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("freeze", [[], ["encoder"], ["encoder.patch_embed", "encoder.blocks.0"]])
def test_recomputed_activations_give_the_same_gradients(batch, freeze):
    """With what is random in training: stochastic depth, dropout, pieces and dropped conditions."""
    noise = {"encoder": {"drop_path_rate": 0.3}, "decoder": {"dropout": 0.1}}
    grads = []
    for on in (False, True):
        p = config.load("smoke", {**noise, "train": {"activation_checkpointing": on, "freeze": freeze}})
        torch.manual_seed(0)
        codec = build_codec(p.codec)
        with torch.no_grad():
            codec.E.normal_()
        task = VMAsTask(VMAs(p, codec)).train()
        calls = []
        for block in (*task.model.encoder.blocks, *task.model.decoder.blocks):
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)
        data = {"frames": batch[0], "codes": batch[1], "weights": torch.ones(2, p.num_tokens)}
        for seed in range(3):
            task(data, torch.Generator().manual_seed(seed))["loss"].backward()
        grads.append(({n: q.grad for n, q in task.named_parameters() if q.requires_grad}, len(calls)))
    (plain, once), (recomputed, twice) = grads
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[n], recomputed[n]) for n in plain)
    frozen = 3 * 4 if freeze == ["encoder"] else 0  # where nothing is kept, nothing is done again
    assert twice == 2 * once - frozen


def test_contrastive_gradient_reaches_encoder_and_decoder(batch):
    p, model = tiny(beat_weighting=True)
    frames, codes = batch
    model(frames, codes, torch.zeros(2, p.num_tokens))["loss"].backward()  # weight 0 everywhere: only L_c is left
    assert model.encoder.patch_embed.proj.weight.grad.abs().max() > 0
    assert model.decoder.layers[0].linear1.weight.grad.abs().max() > 0


def test_generation_depends_on_seed_and_index_not_on_the_batch(batch):
    _, model = tiny()
    frames = batch[0]
    both = model.generate_waveform(frames, seed=3)
    assert both.shape == (2, model.profile.clip.num_samples)
    assert np.array_equal(both, model.generate_waveform(frames, seed=3))
    np.testing.assert_allclose(both[1:], model.generate_waveform(frames[1:], seed=3, first=1), atol=1e-4)
    assert not np.allclose(both, model.generate_waveform(frames, seed=4), atol=1e-3)


def test_progress_runs_to_the_end(batch):
    _, model = tiny()
    seen = []
    model.generate_waveform(batch[0], progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def saved(tmp_path):
    _, model = tiny()
    save_codec(tmp_path / "codec", model.codec)
    model.save_pretrained(tmp_path / "vmas-seed0", seed=7)
    return model


def test_checkpoint_round_trip(tmp_path, batch):
    model = saved(tmp_path)
    again = VMAs.from_pretrained(tmp_path / "vmas-seed0")
    a, b = model.eval()(*batch), again(*batch)
    assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-5)
    assert checkpoint.read_manifest(tmp_path / "vmas-seed0")["seed"] == 7


def test_other_codec_is_refused(tmp_path):
    saved(tmp_path)
    _, other = tiny()
    with torch.no_grad():
        other.codec.E.add_(1.0)
    save_codec(tmp_path / "codec", other.codec)
    with pytest.raises(CheckpointError, match="not the codec"):
        VMAs.from_pretrained(tmp_path / "vmas-seed0")


def test_missing_codec_and_other_architecture(tmp_path):
    model = saved(tmp_path)
    (tmp_path / "codec" / checkpoint.MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="codec is missing"):
        VMAs.from_pretrained(tmp_path / "vmas-seed0")
    path = tmp_path / "vmas-seed0" / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["config"]["decoder"]["dim"] = 32
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="another architecture"):
        VMAs.from_pretrained(tmp_path / "vmas-seed0", codec=model.codec)


def test_tasks_give_finite_losses(batch):
    p, model = tiny()
    frames, codes = batch
    flow = torch.rand(2, p.clip.num_frames - 1)
    motion = MotionTask(model.encoder, *MotionTask.statistics(flow.numpy()), (8, 6))
    music = MusicTask(model.decoder, p.piece_tokens)
    everything = {"frames": frames, "flow": flow, "codes": codes, "weights": torch.ones(2, p.num_tokens)}
    everything["scene"] = torch.tensor([[7, 0], [2, 5]])
    for task in (motion, music, VMAsTask(model)):
        assert torch.isfinite(task(everything)["loss"])
        assert torch.isfinite(task(everything, torch.Generator().manual_seed(0))["loss"])


def test_music_alone_is_heard_as_with_the_null_condition(batch):
    """Loss and gradients in the same bits; those of the cross-attention are zero and not missing: they decay, too."""
    p, model = tiny()
    decoder, codes = model.decoder, batch[1]
    null = torch.zeros(len(codes), p.num_video_tokens, p.encoder.out_dim), torch.zeros(len(codes), dtype=torch.bool)
    decoder.zero_grad()
    expected = losses.weighted_cross_entropy(decoder.codec_time_logits(codes, *null), codes)
    expected.backward()
    grads = {name: q.grad.clone() for name, q in decoder.named_parameters()}
    decoder.zero_grad()
    loss = MusicTask(decoder)({"codes": codes})["loss"]
    loss.backward()
    assert torch.equal(loss, expected)
    for name, q in decoder.named_parameters():
        assert torch.equal(q.grad, grads[name]), name
    idle = {id(q) for q in decoder.conditioning()}
    assert all((id(q) in idle) == (not q.grad.any()) for q in decoder.parameters())


def test_scene_labels_are_named_by_every_token(batch):
    p, model = tiny()
    task = MotionTask(model.encoder, 0.0, 1.0, (8, 6))
    flow = torch.rand(2, p.clip.num_frames - 1)
    with torch.no_grad():
        for linear, name in zip(task.scene, (3, 1), strict=True):
            linear.weight.zero_()
            linear.bias.copy_(torch.nn.functional.one_hot(torch.tensor(name), linear.out_features) * 50.0)
        right = task({"frames": batch[0], "flow": flow, "scene": torch.tensor([[3, 1], [3, 1]])})
        wrong = task({"frames": batch[0], "flow": flow, "scene": torch.tensor([[3, 1], [2, 1]])})
    assert (float(right["scene0"]), float(right["scene1"])) == (1.0, 1.0)
    assert (float(wrong["scene0"]), float(wrong["scene1"])) == (0.5, 1.0)
    assert float(wrong["loss"]) == pytest.approx(float(right["loss"]) + 25.0 * SCENE_WEIGHT, abs=1e-3)


@pytest.mark.parametrize("lengths", [(), (25,), (25, 50, 250), (250,), (240,)])
def test_pieces_lie_within_the_clip(lengths):
    g = torch.Generator().manual_seed(3)
    seen = set()
    for _ in range(200):
        pieces, start, stop = draw_pieces(250, lengths, g)
        assert 0 <= start < stop <= 250
        assert (stop - start) % pieces == 0
        assert not lengths or (stop - start) // pieces in lengths
        assert 250 - stop < (stop - start) // pieces  # nothing that another piece would have held is left out
        seen.add((stop - start) // pieces)
    assert seen == set(lengths or (250,))


def test_a_piece_is_a_clip_that_begins_there(batch):
    """Piece i of `pieces` equals the decoder on that piece alone with the video's time line moved."""
    p, model = tiny()
    decoder = model.eval().decoder
    X_v = torch.randn(2, p.num_video_tokens, p.encoder.out_dim, generator=torch.Generator().manual_seed(2))
    codes = batch[1][..., 7:107]
    whole = decoder.codec_time_logits(codes, X_v, pieces=4, start=7)
    assert whole.shape[2] == 100
    for i in range(4):
        alone = decoder.codec_time_logits(codes[..., 25 * i : 25 * (i + 1)], X_v, start=7 + 25 * i)
        torch.testing.assert_close(whole[:, :, 25 * i : 25 * (i + 1)], alone, rtol=0, atol=1e-5)
    elsewhere = decoder.codec_time_logits(codes[..., :25], X_v, start=0)
    assert (elsewhere - whole[:, :, :25]).abs().max() > 1e-4  # the time bias does look at the video's time
    with pytest.raises(DataError, match="cannot be cut into 3 equal pieces"):
        decoder.codec_time_logits(codes, X_v, pieces=3)


def test_calibrated_condition_has_mean_0_and_std_1(batch):
    _, model = tiny()
    with torch.no_grad():
        model.decoder.cond_proj.bias.normal_()
    calibrate(model, batch[0].numpy())
    with torch.no_grad():
        cond = model.decoder.project_condition(model.eval().encode_video(batch[0])).flatten(0, 1)
    assert cond.mean(0).abs().max() < 1e-3
    assert float(cond.std()) == pytest.approx(1.0, abs=1e-3)


def test_frozen_encoder_is_asked_once_and_says_the_same(batch):
    frames = np.concatenate([batch[0].numpy()] * 2)
    source = ClipDataset({"frames": frames}, np.array([0, 2, 3]))
    _, model = tiny()
    assert seen_once(model, source) is source  # it learns: nothing may be kept
    freeze(model, ["encoder"])
    model.train()
    held = seen_once(model, source)
    known = held.__getitems__([0, 2])
    assert model.training
    assert len(held) == 3
    assert "frames" not in known
    known["frames"] = source.__getitems__([0, 2])["frames"]
    assert torch.equal(held.first(2)["frames"], source.first(2)["frames"])  # samples are still made from pictures
    torch.testing.assert_close(known["X_v"], model.encode_video(known["frames"]), rtol=0, atol=1e-5)
    data = [known["frames"], batch[1], torch.ones(batch[1].shape[::2])]
    told, computed = model(*data, X_v=known["X_v"]), model(*data)
    for name in told:
        torch.testing.assert_close(told[name], computed[name], rtol=0, atol=1e-4)
    other = model(*data, X_v=known["X_v"].flip(0))
    assert abs(float(other["loss"] - told["loss"])) > 1e-6  # what is given is what is used


def test_a_gpu_takes_as_many_clips_at_once_as_their_keys_and_values_leave_room_for(monkeypatch):
    p, model = tiny()
    assert model.clips_at_once() == p.sampling.batch_size
    monkeypatch.setattr(VMAs, "device", torch.device("cuda"))
    steps = p.num_tokens + p.codec.n_q - 1
    one = p.decoder.layers * 2 * 2 * p.decoder.dim * steps * 4  # layers, keys and values, guided or not, bytes
    monkeypatch.setattr("vmas.model.CACHE_BYTES", 37 * one + 1)
    assert model.clips_at_once() == max(37, p.sampling.batch_size)
    monkeypatch.setattr("vmas.model.CACHE_BYTES", 1)
    assert model.clips_at_once() == p.sampling.batch_size, "never fewer than on a CPU"


def test_condition_dropout_follows_the_generator(batch):
    p, model = tiny()
    task = VMAsTask(model).eval()
    data = {"frames": batch[0], "codes": batch[1], "weights": torch.ones(2, p.num_tokens)}
    dropped = [float(task(data, torch.Generator().manual_seed(i))["L_c"]) == 0.0 for i in range(20)]
    again = [float(task(data, torch.Generator().manual_seed(i))["L_c"]) == 0.0 for i in range(20)]
    assert dropped == again
    assert 1 <= sum(dropped) <= 14  # 0.3 of 20 in the mean


def test_clip_weights_follow_the_profile():
    p = config.load("smoke")
    flow = np.zeros((1, p.clip.num_frames - 1), np.float32)
    flow[0, 20] = 1.0  # the pair 20 → 21, at 21 / 9.6 s
    beats = np.zeros((1, p.num_tokens), bool)
    t = round(21 / p.clip.fps * p.codec.frame_rate)
    beats[0, t + 2] = True
    w = clip_weights(flow, beats, p)[0]
    assert w[t] == 1.0
    assert np.all(np.delete(w, t) == np.float32(p.align.alpha))


def test_music_embedding_uses_the_codecs_entries(batch):
    p, model = tiny()
    logits = torch.full((1, p.codec.n_q, 5, p.codec.bins), -1e9)
    logits[..., 3] = 0.0
    M = losses.music_embedding(logits, model.E, torch.ones(p.codec.n_q, 5, dtype=torch.bool))
    torch.testing.assert_close(M[0], model.E[:, 3].sum(0))
