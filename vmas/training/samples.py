"""Generated clips in TensorBoard: players and log-mel spectrograms."""

import numpy as np

from vmas import compiled


def log_samples(accelerator, stage: str, waves: tuple[np.ndarray, int], step: int) -> None:
    """Write music [B,N] at a sample rate, as (waves, rate), to Accelerate's TensorBoard tracker."""
    librosa = compiled.librosa()
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    music, rate = waves
    writer = accelerator.get_tracker("tensorboard", unwrap=True)
    for i, wave in enumerate(music):
        writer.add_audio(f"{stage}/music-{i}", np.clip(wave, -1, 1)[None], step, sample_rate=rate)
        mel = librosa.power_to_db(librosa.feature.melspectrogram(y=wave, sr=rate, n_mels=96), ref=1.0)
        figure = Figure(figsize=(6, 2.5), layout="constrained")
        ax = figure.subplots()
        image = ax.imshow(
            mel, origin="lower", aspect="auto", cmap="viridis", extent=(0, len(wave) / rate, 0, mel.shape[0])
        )
        ax.set(xlabel="time (s)", ylabel="mel band")
        figure.colorbar(image, label="power (dB)")
        writer.add_figure(f"{stage}/spectrogram-{i}", figure, step)
    writer.flush()
