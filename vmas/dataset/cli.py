"""`vmas dataset build` and `vmas dataset check`."""

from pathlib import Path
from typing import Annotated

import typer

from vmas.errors import DataError

app = typer.Typer(help="Datasets of music videos after section 3: build them, check them.", no_args_is_help=True)

Profile = Annotated[str, typer.Option(help="smoke, mini, paper, or the path of a YAML file: the clips' shape.")]


@app.command(
    epilog="Example: vmas dataset build --manifest videos.csv --out disco-mv --val 20 --test 20; the same again resumes"
)
def build(
    manifest: Annotated[Path, typer.Option(help="CSV or parquet with id, path or url, ...", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the dataset.", show_default=False)],
    profile: Profile = "mini",
    media: Annotated[Path | None, typer.Option(help="Folder with <id>.mp4 for rows that name no file.")] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Leave a stage out: similarity, duplicates, vocals, genre, tokens or beats (repeatable)."),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Frame similarity from which on a video is left out.")] = 0.7,
    frames: Annotated[str, typer.Option(help="Features of the frame similarity: cheap or clip.")] = "cheap",
    vocals: Annotated[str, typer.Option(help="Vocal removal: classic or demucs.")] = "classic",
    genre: Annotated[str, typer.Option(help="Genres: tagger or clap.")] = "tagger",
    val: Annotated[int, typer.Option(min=0, help="Videos held out for validation (paper: 1120).")] = 0,
    test: Annotated[int, typer.Option(min=0, help="Videos held out for testing (paper: 1086).")] = 0,
    clips_per_video: Annotated[int, typer.Option(min=0, help="At most so many clips of a video; 0 = all.")] = 0,
    shard_size: Annotated[int, typer.Option(min=1, help="Clips in a shard.")] = 256,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder with codec/ and tagger/; default: the profile's own.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for the codec.")] = "cpu",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print counts and an estimate of the cost only.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Videos → WebDataset shards of clips with music, tokens and beat weights; a ledger says what was left out."""
    from vmas import config
    from vmas.dataset.build import build as build_dataset
    from vmas.dataset.manifest import read_manifest
    from vmas.dataset.stages import Options

    options = Options(
        config.load(profile),
        tuple(sorted(set(skip or []))),
        threshold=threshold,
        frames=frames,
        vocals=vocals,
        genre=genre,
        val=val,
        test=test,
        clips_per_video=clips_per_video,
        shard_size=shard_size,
        checkpoints=str(checkpoints) if checkpoints else None,
    )
    videos = read_manifest(manifest, media)
    if dry_run:
        from vmas.dataset.estimate import estimate

        typer.echo(estimate(videos, options))
        return
    say = lambda line: None if quiet else typer.echo(line, err=True)  # noqa: E731
    typer.echo(build_dataset(videos, out, options, workers, device, not quiet, say).line())


@app.command(epilog="Example: vmas dataset check disco-mv/train")
def check(folder: Annotated[Path, typer.Argument(help="A folder of shards, or a built dataset.")]) -> None:
    """Compare every shard with its sha256; exit code 1 when one is damaged or missing."""
    from vmas.dataset import shards

    folders = sorted({p.parent for p in folder.glob("*/" + shards.SHARDS)}) or [folder]
    bad = n = 0
    for one in folders:
        known = shards.read_index(one)[1]
        for name, expected in zip(known["shard"], known["sha256"], strict=True):
            n += 1
            if problem := shards.verify_shard(one / name, expected):
                bad += 1
                typer.echo(f"{one / name}: {problem}")
    if bad:
        raise DataError(f"{folder}: {bad} of {n} shards are damaged or missing")
    typer.echo(f"{folder}: {n} shards are whole")
