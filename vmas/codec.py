"""Waveform ↔ tokens (section 4.1 and appendix B: EnCodec, 32 kHz, stride 640, 4 codebooks, 50 tokens a second).

Two codecs stand behind one interface. `EncodecCodec` is audiocraft's EncodecModel in MusicGen's 32 kHz
configuration (paper scale). `FrameCodec` is the mini one: log-mel frames → ConvNeXt → residual vector
quantizer → ConvNeXt → inverse STFT, small enough to be trained on a CPU in minutes. The phase is not
coded but invented by the decoder, so waveform measures such as SI-SDR mean nothing for it.

References: Défossez et al. 2022 (EnCodec), Siuzdak 2023 (Vocos: ConvNeXt with an inverse-STFT head),
Liu et al. 2022 (ConvNeXt); quantizer: audiocraft/quantization/core_vq.py.
"""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmas import checkpoint
from vmas.config import CodecConfig, from_dict
from vmas.errors import CheckpointError, ConfigError, DataError

KIND = "codec"
MEL_FFT = 1024  # samples of a log-mel frame, 32 ms at 32 kHz
MEL_PER_TOKEN = 2  # log-mel frames per token: onsets are placed more finely than the 20 ms of a token
FRAMES_PER_TOKEN = 2  # inverse-STFT frames per token
FLOOR = 1e-4  # magnitude under which the front end hears silence


class Codec(nn.Module):
    """What every codec offers: mono waveforms [B,1,N] at `sample_rate` ↔ codes int64 [B,K,T], T = ceil(N / hop).

    Attributes: `sample_rate` (Hz), `frame_rate` (tokens per second), `n_q` (K codebooks), `bins` (entries of
    each), `dim` (width of an entry), `hop` (samples per token), `sha256` (of the weights it was loaded from).
    """

    sample_rate: int
    frame_rate: float
    hop: int
    n_q: int
    bins: int
    dim: int
    sha256: str = ""
    cfg: CodecConfig

    def encode(self, wav: Tensor) -> Tensor:
        """Codes int64 [B,K,ceil(N/hop)] of wav float [B,1,N]. Raises DataError on NaN, infinity or another shape."""
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """Waveform float [B,1,T·hop] of codes int [B,K,T]. Raises DataError on codes that no codebook has."""
        raise NotImplementedError

    def codebooks(self) -> Tensor:
        """E of eq. 2: float [K,bins,dim], frozen. The embedding of a token is the sum over k (residual layers)."""
        raise NotImplementedError

    def _check_wav(self, wav: Tensor) -> None:
        if wav.ndim != 3 or wav.shape[1] != 1 or not wav.shape[-1]:
            raise DataError(f"the codec takes mono waveforms [B,1,N], N > 0; got {list(wav.shape)}")
        if not torch.isfinite(wav).all():
            raise DataError("the waveform holds NaN or infinite samples; repair the audio before encoding it")

    def _check_codes(self, codes: Tensor) -> None:
        if codes.ndim != 3 or codes.shape[1] != self.n_q or not codes.shape[-1]:
            raise DataError(f"the codec takes codes [B,{self.n_q},T], T > 0; got {list(codes.shape)}")
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.bins):
            raise DataError(f"codes must lie in 0..{self.bins - 1}; got {int(codes.min())}..{int(codes.max())}")


class LogMel(nn.Module):
    """ln of the mel magnitudes, frames centred in their hop: float [B,N] → [B,n_mels,ceil(N/hop)]."""

    def __init__(self, sample_rate: int, n_fft: int, hop: int, n_mels: int, floor: float = FLOOR):
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        self.n_fft, self.hop, self.floor = n_fft, hop, floor
        # Slaney's scale, area 1 per band, as librosa's default
        bank = melscale_fbanks(n_fft // 2 + 1, 0.0, sample_rate / 2, n_mels, sample_rate, "slaney", "slaney")
        window = torch.hann_window(n_fft)
        self.register_buffer("window", window, persistent=False)
        # divided by the window's sum: a full-scale sine has magnitude 1/2 whatever n_fft is
        self.register_buffer("bank", bank.T.contiguous() * (sample_rate / n_fft / window.sum()), persistent=False)

    def magnitudes(self, wav: Tensor) -> Tensor:
        """Mel magnitudes float [B,n_mels,ceil(N/hop)] of wav float [B,N]."""
        frames = -(-wav.shape[-1] // self.hop)
        edge = (self.n_fft - self.hop) // 2
        wav = F.pad(wav, (edge, frames * self.hop - wav.shape[-1] + self.n_fft - self.hop - edge))
        spectrum = torch.stft(wav, self.n_fft, self.hop, window=self.window, center=False, return_complex=True)
        return self.bank @ (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()

    def forward(self, wav: Tensor) -> Tensor:
        return self.magnitudes(wav).clamp_min(self.floor).log()


class ConvNeXtBlock(nn.Module):
    """ConvNeXt block over time: depthwise convolution, then a channel MLP with layer scale. [B,T,C] → [B,T,C]."""

    def __init__(self, width: int, scale: float, kernel: int = 7):
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.shrink = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return x + self.scale * self.shrink(F.gelu(self.expand(y)))


class ConvNeXt(nn.Module):
    """Stack of blocks between a convolution and a linear layer: [B,T,d_in] → [B,T,d_out]."""

    def __init__(self, d_in: int, width: int, blocks: int, d_out: int):
        super().__init__()
        self.embed = nn.Conv1d(d_in, width, 7, padding=3)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, 1 / blocks) for _ in range(blocks))
        self.last_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, d_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x.transpose(1, 2)).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.out(self.last_norm(x))


class InverseSTFT(nn.Module):
    """Log-magnitudes and phases → waveform, windows overlapping fourfold: [B,F,2·(n_fft/2+1)] → [B,F·hop]."""

    OVERLAP = 4

    def __init__(self, hop: int):
        super().__init__()
        self.hop, self.n_fft = hop, self.OVERLAP * hop
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    @property
    def channels(self) -> int:
        return 2 * (self.n_fft // 2 + 1)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """[B,F,n_fft] → [B,F·hop], both ends trimmed alike so that frame f stays centred in its hop."""
        B, count, _ = frames.shape
        parts = frames.view(B, count, self.OVERLAP, self.hop)
        out = frames.new_zeros(B, count + self.OVERLAP - 1, self.hop)
        for i in range(self.OVERLAP):
            out[:, i : i + count] += parts[:, :, i]
        edge = (self.n_fft - self.hop) // 2
        return out.flatten(1)[:, edge : edge + count * self.hop]

    def forward(self, x: Tensor) -> Tensor:
        log_magnitude, phase = x.float().chunk(2, dim=-1)
        # a full-scale sine has magnitude n_fft/4; the bound only keeps a wild step from overflowing
        spectrum = torch.polar(log_magnitude.clamp(max=7.0).exp(), phase)
        frames = torch.fft.irfft(spectrum, self.n_fft) * self.window
        envelope = self._overlap_add(self.window.square().expand(1, x.shape[1], -1))
        return self._overlap_add(frames) / envelope.clamp_min(1e-3)


class FrameCodec(Codec):
    """The mini codec: log-mel → ConvNeXt → 4 residual codebooks → ConvNeXt → inverse STFT.

    At inference the quantizer is a table lookup in plain torch that picks the same entries as audiocraft's
    ResidualVectorQuantizer, which trains it (`vmas.codec_train`): importing audiocraft takes 10 s.
    """

    def __init__(self, cfg: CodecConfig):
        super().__init__()
        if cfg.hop % MEL_PER_TOKEN or cfg.hop % FRAMES_PER_TOKEN:
            raise ConfigError(f"codec.hop must be a multiple of {MEL_PER_TOKEN} and {FRAMES_PER_TOKEN}, got {cfg.hop}")
        self.cfg = cfg
        self.sample_rate, self.frame_rate, self.hop = cfg.sample_rate, cfg.frame_rate, cfg.hop
        self.n_q, self.bins, self.dim = cfg.n_q, cfg.bins, cfg.dim
        self.mel = LogMel(cfg.sample_rate, MEL_FFT, cfg.hop // MEL_PER_TOKEN, cfg.n_mels)
        self.register_buffer("mel_mean", torch.zeros(cfg.n_mels))
        self.register_buffer("mel_std", torch.ones(cfg.n_mels))
        self.encoder = ConvNeXt(MEL_PER_TOKEN * cfg.n_mels, cfg.width, cfg.blocks, cfg.dim)
        self.register_buffer("E", torch.zeros(cfg.n_q, cfg.bins, cfg.dim))
        self.head = InverseSTFT(cfg.hop // FRAMES_PER_TOKEN)
        self.decoder = ConvNeXt(cfg.dim, cfg.width, cfg.blocks, FRAMES_PER_TOKEN * self.head.channels)

    def codebooks(self) -> Tensor:
        return self.E

    def latent(self, wav: Tensor) -> Tensor:
        """Continuous latents float [B,T,dim] of wav float [B,N] with N a multiple of hop."""
        x = (self.mel(wav).transpose(1, 2) - self.mel_mean) / self.mel_std
        return self.encoder(x.reshape(x.shape[0], x.shape[1] // MEL_PER_TOKEN, -1))

    def synthesise(self, latent: Tensor) -> Tensor:
        """Waveform float [B,T·hop] of latents [B,T,dim]."""
        x = self.decoder(latent)
        return self.head(x.reshape(x.shape[0], x.shape[1] * FRAMES_PER_TOKEN, -1))

    def quantize(self, latent: Tensor) -> Tensor:
        """Codes int64 [B,K,T]: codebook k takes the entry nearest to what codebooks 0..k-1 left over."""
        residual, codes = latent, []
        for table in self.E:
            nearest = (residual @ table.T - 0.5 * table.square().sum(1)).argmax(-1)
            residual = residual - F.embedding(nearest, table)
            codes.append(nearest)
        return torch.stack(codes, dim=1)

    def embed(self, codes: Tensor) -> Tensor:
        """Sum over the codebooks: float [B,T,dim] of codes [B,K,T]."""
        return torch.stack([F.embedding(codes[:, k].long(), self.E[k]) for k in range(self.n_q)]).sum(0)

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        self._check_wav(wav)
        wav = wav[:, 0]
        return self.quantize(self.latent(F.pad(wav, (0, -wav.shape[-1] % self.hop))))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        return self.synthesise(self.embed(codes))[:, None]


class EncodecCodec(Codec):
    """audiocraft's EncodecModel as MusicGen uses it at 32 kHz: SEANet of 64 filters, strides 8·5·4·4, 4 codebooks.

    `cfg.width` is SEANet's filter count (the paper's "initial feature size of 64"), `cfg.dim` the width of
    its latents. Fresh weights are random; `pretrained_codec` loads the published ones.

    Args:
        pad_mode: audiocraft's configuration says "constant", the transformers copy of the same weights
            "reflect"; a published file that brings its own configuration decides.
    """

    STRIDES: ClassVar[dict[int, tuple[int, ...]]] = {640: (8, 5, 4, 4), 320: (8, 5, 4, 2)}

    def __init__(self, cfg: CodecConfig, pad_mode: str = "constant"):
        super().__init__()
        if cfg.hop not in self.STRIDES:
            raise ConfigError(f"codec.hop must be one of {sorted(self.STRIDES)} for kind 'encodec', got {cfg.hop}")
        quiet_xformers()
        from audiocraft.models.encodec import EncodecModel
        from audiocraft.modules.seanet import SEANetDecoder, SEANetEncoder
        from audiocraft.quantization.vq import ResidualVectorQuantizer

        self.cfg, self.pad_mode = cfg, pad_mode
        self.sample_rate, self.frame_rate, self.hop = cfg.sample_rate, cfg.frame_rate, cfg.hop
        self.n_q, self.bins, self.dim = cfg.n_q, cfg.bins, cfg.dim
        shape: dict[str, Any] = {"dimension": cfg.dim, "n_filters": cfg.width, "ratios": list(self.STRIDES[cfg.hop])}
        # audiocraft config/model/encodec/default.yaml, where it differs from the classes' own defaults
        shape |= {"n_residual_layers": 1, "norm": "weight_norm", "true_skip": True, "lstm": 2, "pad_mode": pad_mode}
        self.model = EncodecModel(
            SEANetEncoder(**shape),
            SEANetDecoder(**shape),
            ResidualVectorQuantizer(dimension=cfg.dim, n_q=cfg.n_q, bins=cfg.bins, kmeans_init=False),
            frame_rate=round(cfg.frame_rate),
            sample_rate=cfg.sample_rate,
            channels=1,
        )

    def codebooks(self) -> Tensor:
        return torch.stack([book.embed for book in books(self.model.quantizer)])

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        self._check_wav(wav)
        return self.model.encode(wav)[0]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        return self.model.decode(codes)


def books(quantizer: Any) -> list[Any]:
    """The `EuclideanCodebook` of every layer of audiocraft's ResidualVectorQuantizer."""
    return [layer._codebook for layer in quantizer.vq.layers]


def quiet_xformers() -> None:
    """Keep xformers, which audiocraft imports, from warning about GPU kernels that nothing here uses."""
    logging.getLogger("xformers").setLevel(logging.ERROR)


def _transformers_name(name: str) -> str:
    """Name that transformers' EncodecModel gives to a tensor of audiocraft's."""
    name = re.sub(r"\.(conv|convtr)\.\1\.", ".conv.", name)
    name = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", name)
    return re.sub(r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook.", name)


def _read_tensors(path: Path) -> tuple[dict, str]:
    """(tensors, configuration as YAML text or "") of a published file; never unpickles objects."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path)), ""
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # every reader has its own exceptions for a damaged file
        raise CheckpointError(path, f"cannot be read as weights: {type(e).__name__}", "fetch it again") from e
    if not isinstance(found, dict) or "pretrained" in found:
        raise CheckpointError(path, "holds no weights of its own", "use the file of facebook/encodec_32khz")
    return found.get("best_state", found), str(found.get("xp.cfg", ""))


def load_encodec(path, cfg: CodecConfig) -> EncodecCodec:
    """EncodecCodec with published weights, frozen, in evaluation mode.

    `path` is audiocraft's exported checkpoint (`compression_state_dict.bin`) or the transformers layout of
    facebook/encodec_32khz (`.safetensors` or `.bin`). Raises CheckpointError when the file is damaged or of
    another architecture.
    """
    import yaml

    path = Path(path)
    state, described = _read_tensors(path)
    transformers = any(n.startswith("encoder.layers.") for n in state)
    pad_mode = "reflect" if transformers else "constant"
    if described:
        try:
            pad_mode = yaml.safe_load(described)["seanet"]["pad_mode"]
        except (yaml.YAMLError, KeyError, TypeError):
            pass  # an export without the section keeps audiocraft's default
    codec = EncodecCodec(cfg, pad_mode)
    if transformers:
        # newer versions store weight normalisation as a parametrization
        old = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
        for new_name, old_name in old.items():
            state = {n.replace(new_name, old_name): t for n, t in state.items()}
        names = {_transformers_name(n): n for n in codec.model.state_dict()}
        state = {names.get(n, n): t for n, t in state.items()}
    checkpoint.load_into(codec.model, {n: t.float() for n, t in state.items()}, path)
    codec.sha256 = checkpoint.file_sha256(path)
    return codec.eval().requires_grad_(False)


def pretrained_codec(cfg: CodecConfig) -> EncodecCodec:
    """The published codec that `cfg.weights` names in `vmas.weights`.

    Raises WeightsUnavailable (which file, from where, licence CC-BY-NC 4.0) when there is no local copy.
    """
    from vmas import weights

    if not cfg.weights:
        raise ConfigError("codec.weights names no published weights; set it to 'encodec_32khz'")
    return load_encodec(weights.locate(cfg.weights), cfg)


def stored_sha256(cfg: CodecConfig, folder) -> str:
    """`sha256` of `pretrained_codec(cfg)`, or without `cfg.weights` of `load_codec(folder)`, from the files alone.

    Raises WeightsUnavailable, CheckpointError.
    """
    from vmas import weights

    if not cfg.weights:
        return checkpoint.verify(folder, KIND)["sha256"]
    weights.locate(cfg.weights)
    return weights.verify(cfg.weights)


def onset_f(reference, estimate, sample_rate: int, hop: int, tolerance_s: float = 0.05) -> float:
    """F measure of the onsets of `estimate` against those of `reference` (both float [N]), one to one.

    NaN when neither has an onset.
    """
    from vmas.beats import audio_onsets

    a, b = (audio_onsets(w, sample_rate, hop) * hop / sample_rate for w in (reference, estimate))
    return f_measure(a, b, tolerance_s)


def f_measure(a, b, tolerance_s: float = 0.05) -> float:
    """F measure of times `b` against times `a` (seconds, both rising), one to one; NaN when both are empty."""
    hits, i, j = 0, 0, 0
    while i < len(a) and j < len(b):  # both ascend: taking the earliest pair each time is the largest matching
        if abs(a[i] - b[j]) <= tolerance_s + 1e-9:
            hits, i, j = hits + 1, i + 1, j + 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return 2 * hits / (len(a) + len(b)) if len(a) + len(b) else float("nan")


@torch.no_grad()
def codec_report(codec: Codec, wavs, batch_size: int = 16, onsets: bool = True) -> dict:
    """How well a codec reconstructs clips, as plain numbers for a manifest.

    Args:
        wavs: int16 or float [N,samples] at the codec's sample rate.
        onsets: also measure onsets (librosa; 0.05 s of CPU a clip).

    Returns: "clips"; "log_mel_db", mean absolute difference of 80 mel bands in dB, hop 10 ms, everything more
    than 60 dB below the clip's loudest point raised to that; "log_mel_db_80" the same with 80 dB, which also
    counts what lies under the front end's `FLOOR`; "onset_f" at 50 ms; "codes_used", share of all entries that
    occur; "perplexity", mean over codebooks of e^entropy; "gain_db", mean level of the reconstruction relative
    to the original.
    """
    import numpy as np

    device = codec.codebooks().device
    mel = LogMel(codec.sample_rate, 2048, codec.sample_rate // 100, 80).to(device)
    counts = torch.zeros(codec.n_q, codec.bins)
    distances: dict[str, list[float]] = {"log_mel_db": [], "log_mel_db_80": []}
    scores, gains = [], []

    for i in range(0, len(wavs), batch_size):
        wav = as_float(wavs[i : i + batch_size]).to(device)
        codes = codec.encode(wav[:, None])
        back = codec.decode(codes)[:, 0, : wav.shape[1]]
        for k in range(codec.n_q):
            counts[k] += torch.bincount(codes[:, k].flatten().cpu(), minlength=codec.bins)
        a, b = (20 * mel.magnitudes(w).clamp_min(1e-7).log10() for w in (wav, back))
        loudest = a.amax(dim=(1, 2), keepdim=True)
        for name, below in (("log_mel_db", 60), ("log_mel_db_80", 80)):
            gap = torch.maximum(a, loudest - below) - torch.maximum(b, loudest - below)
            distances[name] += gap.abs().mean((1, 2)).tolist()
        levels = [w.square().mean(1).clamp_min(1e-9).log10() for w in (back, wav)]
        gains += (10 * (levels[0] - levels[1])).tolist()
        if onsets:
            pairs = zip(wav.cpu().numpy(), back.cpu().numpy(), strict=True)
            scores += [onset_f(x, y, codec.sample_rate, codec.hop) for x, y in pairs]
    share = counts / counts.sum(1, keepdim=True)
    out = {
        "clips": len(wavs),
        **{name: round(float(np.mean(values)), 4) for name, values in distances.items()},
        "codes_used": round(float((counts > 0).float().mean()), 4),
        "perplexity": round(float(torch.special.entr(share).sum(1).exp().mean()), 1),
        "gain_db": round(float(np.mean(gains)), 3),
    }
    if onsets:
        out["onset_f"] = round(float(np.nanmean(scores)), 4)
    return out


def as_float(wavs) -> Tensor:
    """float32 tensor in [-1,1] of int16 or float samples (numpy or torch)."""
    import numpy as np

    wavs = np.asarray(wavs)
    return torch.from_numpy(wavs.astype(np.float32) / 32767.0 if wavs.dtype == np.int16 else wavs.astype(np.float32))


def build_codec(cfg: CodecConfig) -> Codec:
    """An untrained codec of the kind that `cfg.kind` names. Raises ConfigError for an unknown kind."""
    if cfg.kind == "frame":
        return FrameCodec(cfg)
    if cfg.kind == "encodec":
        return EncodecCodec(cfg)
    raise ConfigError(f"codec.kind must be 'frame' or 'encodec', got {cfg.kind!r}")


def save_codec(folder, codec: Codec, seed: int = 0, training: dict | None = None, half: bool = True) -> Path:
    """Write weights (float16 unless `half` is False) and manifest; sets `codec.sha256` to the file's."""
    config = dataclasses.asdict(codec.cfg)
    folder = checkpoint.save(folder, codec.state_dict(), KIND, config, seed, training, half=half)
    codec.sha256 = checkpoint.read_manifest(folder, KIND)["sha256"]
    return folder


def load_codec(folder) -> Codec:
    """The codec of a checkpoint folder, frozen, in evaluation mode. Raises CheckpointError (missing, altered,
    damaged, of another architecture)."""
    state, manifest = checkpoint.load(folder, KIND)
    try:
        cfg = from_dict(CodecConfig, manifest["config"], source=f"{folder}/{checkpoint.MANIFEST}")
        codec = build_codec(cfg)
    except (ConfigError, KeyError) as e:
        raise CheckpointError(folder, f"its manifest describes no codec of this version: {e}") from e
    checkpoint.load_into(codec, state, folder)
    codec.sha256 = manifest["sha256"]
    return codec.eval().requires_grad_(False)
