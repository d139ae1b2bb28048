"""Music genre of a clip (appendix D): CLAP zero-shot at paper scale, the mini tagger offline, behind one interface.

With CLAP the genre is the one whose prompt lies nearest to the sound: "This audio is a <genre> song", the ten GTZAN
genres, 48 kHz, both embeddings of unit length.
"""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vmas.errors import UsageError, WeightsUnavailable, nearest

if TYPE_CHECKING:
    import torch

GTZAN = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
PROMPT = "This audio is a {} song"
CLAP_RATE, CLAP_S, SHORTEST_S = 48000, 10.0, 1.0
CLAP, OFFLINE = "clap_htsat_unfused", "offline use --genre tagger"
TAGGER = "tagger"  # kind of the checkpoint
TAGGERS = ("tagger", "clap")
SMALLEST_VOCABULARY = 50000


class GenreTagger(Protocol):
    """`wav` float32 [N] → a score per label, float32 [labels], the highest being the genre; equal `key`, equal
    numbers."""

    key: str
    labels: tuple[str, ...]

    def __call__(self, wav: np.ndarray, sample_rate: int) -> np.ndarray: ...


class MiniGenre:
    """Probabilities of the mini tagger (`vmas.embedders.tagger`), which is trained on the procedural corpus."""

    def __init__(self, folder):
        from vmas.embedders.tagger import load_tagger

        self.tagger = load_tagger(folder)
        self.labels = self.tagger.labels
        self.key = self.stored_key(folder)

    @staticmethod
    def stored_key(folder) -> str:
        """The key of a checkpoint, from its files alone. Raises CheckpointError."""
        from vmas import checkpoint

        sha256 = checkpoint.verify(folder, TAGGER)["sha256"]
        return f"tagger-{sha256[:16]}"

    def __call__(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        import soxr

        rate = self.tagger.cfg.sample_rate
        x = wav if sample_rate == rate else soxr.resample(wav, sample_rate, rate)
        return self.tagger.logits(x.astype(np.float32))[0].softmax(-1).numpy()


class ClapGenre:
    """Cosine of CLAP's audio embedding with each genre's prompt (transformers' ClapModel).

    What is longer than the 10 s that the model takes is cut into windows of 10 s, and the mean of their embeddings
    counts; left to the processor a random part would be heard. Model and processor are a local
    copy of laion/clap-htsat-unfused (Apache-2.0), `vmas.weights`, or are injected together with a `key`. Raises
    WeightsUnavailable without a copy, and when the copy lacks its tokenizer, which transformers would silently replace
    by an empty one.
    """

    labels: tuple[str, ...] = GTZAN
    processor: Any

    def __init__(self, model: "torch.nn.Module | None" = None, processor=None, key: str = "", device: str = "cpu"):
        import torch

        if model is not None and not key:
            raise UsageError("an injected CLAP model needs a key, since its scores are kept under it")
        loaded: tuple[Any, Any] = self._load() if model is None else (model, processor)
        self.model, self.processor = loaded[0].eval().to(device), loaded[1]
        self.key, self.device = key or self.stored_key(), device
        if len(self.processor.tokenizer) <= SMALLEST_VOCABULARY and not key:
            raise WeightsUnavailable("CLAP's folder lacks its tokenizer (vocab.json, merges.txt): copy it whole")
        text = self.processor(text=[PROMPT.format(g) for g in GTZAN], return_tensors="pt", padding=True).to(device)
        with torch.inference_mode():
            self.prompts = _unit(self.model.get_text_features(**text))

    @staticmethod
    def stored_key() -> str:
        """The key of the local copy, from its files alone. Raises WeightsUnavailable, CheckpointError."""
        from vmas import weights

        weights.locate(CLAP, OFFLINE)
        return f"clap-htsat-unfused-{weights.verify(CLAP)[:16]}"

    @staticmethod
    def _load() -> tuple[Any, Any]:
        from vmas import weights

        folder = weights.locate(CLAP, OFFLINE)
        from transformers import ClapModel, ClapProcessor

        model = ClapModel.from_pretrained(folder, local_files_only=True)
        return model, ClapProcessor.from_pretrained(folder, local_files_only=True)

    def __call__(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        import soxr
        import torch

        x = soxr.resample(wav, sample_rate, CLAP_RATE).astype(np.float32)
        sounds = []
        with torch.inference_mode():
            for part in windows(x):  # one at a time: the processor pads a batch to its longest
                inputs = self.processor(audio=part, sampling_rate=CLAP_RATE, return_tensors="pt").to(self.device)
                sounds.append(_unit(self.model.get_audio_features(**inputs)))
            sound = _unit(torch.cat(sounds).mean(0, keepdim=True))
        return (sound @ self.prompts.T)[0].float().cpu().numpy()


def windows(x: np.ndarray) -> list[np.ndarray]:
    """float [N] at `CLAP_RATE` in parts of `CLAP_S`, the last one shorter; below `SHORTEST_S` it is left out, where it
    is not the only one."""
    size = round(CLAP_S * CLAP_RATE)
    parts = [x[i : i + size] for i in range(0, max(len(x), 1), size)]
    return parts[:-1] if len(parts) > 1 and len(parts[-1]) < SHORTEST_S * CLAP_RATE else parts


def _unit(features) -> "torch.Tensor":
    import torch

    # transformers 5 returns an output object where version 4 returned the tensor
    x = features if isinstance(features, torch.Tensor) else features.pooler_output
    return torch.nn.functional.normalize(x, dim=-1)


def build_tagger(name: str, folder=None, device: str = "cpu") -> GenreTagger:
    """`tagger` (the mini tagger in `folder`, always on the CPU) or `clap`. Raises UsageError, WeightsUnavailable."""
    if name == "clap":
        return ClapGenre(device=device)
    if name != "tagger":
        raise UsageError(f"unknown genre tagger {name!r}: {nearest(name, TAGGERS)}")
    return MiniGenre(folder)


def tagger_key(name: str, folder=None) -> str:
    """What `build_tagger(name, folder).key` is, without loading a model. Raises as it does."""
    if name == "clap":
        return ClapGenre.stored_key()
    if name != "tagger":
        raise UsageError(f"unknown genre tagger {name!r}: {nearest(name, TAGGERS)}")
    return MiniGenre.stored_key(folder)
