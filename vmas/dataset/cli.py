"""`vmas dataset download`, `build`, `check` and `extrapolate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmas.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from vmas.dataset.cluster import Ray

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
    threshold: Annotated[
        float | None,
        typer.Option(help="Frame similarity from which on a video is left out; default: section 3's, 0.7."),
    ] = None,
    frames: Annotated[str, typer.Option(help="Features of the frame similarity: cheap or clip.")] = "cheap",
    vocals: Annotated[
        str,
        typer.Option(
            help="Vocal removal: demucs, which needs weights ('vmas weights list'), or classic, its offline stand-in,"
            " which leaves part of the voices and harms the music; --skip vocals leaves the sound as it is."
        ),
    ] = "classic",
    genre: Annotated[str, typer.Option(help="Genres: tagger or clap.")] = "tagger",
    val: Annotated[
        int | None,
        typer.Option(min=0, help="Videos held out for validation (paper: 1120); default: as --out has, or 0."),
    ] = None,
    test: Annotated[
        int | None, typer.Option(min=0, help="Videos held out for testing (paper: 1086); default: as --out has, or 0.")
    ] = None,
    quality: Annotated[
        str, typer.Option(help="Held-out videos: those of least similarity, or of best correspondence.")
    ] = "similarity",
    clips_per_video: Annotated[int, typer.Option(min=0, help="At most so many clips of a video; 0 = all.")] = 0,
    shard_size: Annotated[int, typer.Option(min=1, help="Clips in a shard.")] = 256,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder with codec/ and tagger/; default: the profile's own.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: one per core. With 1 a crash is the run's end.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for the models.")] = "cpu",
    backend: Annotated[
        str | None, typer.Option(help="local or ray (the extra 'ray'); default: local, and ray with --address.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster, 'auto' on one of its machines; default: start Ray here.")
    ] = None,
    actors: Annotated[int, typer.Option(min=0, help="Ray: processes that hold the models; 0 = the workers do.")] = 0,
    gpus_per_actor: Annotated[float | None, typer.Option(min=0, help="Ray: default 1 with --device cuda.")] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="A folder that holds a build of other rows or options becomes this one: rows that did not change are"
            " not screened again, shards that stay the same are not made again. Held-out videos stay held out, and none"
            " is taken from train, unless --val or --test is another number than before.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print counts and an estimate of the cost only.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Videos → WebDataset shards of clips with music, tokens and beat weights; a ledger says what was left out.

    What fails on one video or clip is recorded, and the run goes on; unless the file itself is the fault, it is tried
    again when the command is given again. The run stops when more than 5% of its videos, or of its clips, fail, and
    more than one: one alone never stops it. A full disk or memory stops it too, and the same command then goes on from
    there.
    """
    from vmas import config
    from vmas.dataset.build import build as build_dataset
    from vmas.dataset.manifest import read_manifest
    from vmas.dataset.stages import Options
    from vmas.metrics.similarity import THRESHOLD

    options = Options(
        config.load(profile),
        tuple(sorted(set(skip or []))),
        threshold=THRESHOLD if threshold is None else threshold,
        frames=frames,
        vocals=vocals,
        genre=genre,
        val=val,
        test=test,
        quality=quality,
        clips_per_video=clips_per_video,
        shard_size=shard_size,
        checkpoints=str(checkpoints) if checkpoints else None,
    )
    videos = read_manifest(manifest, media)
    options.check(len(videos))
    if dry_run:
        from vmas.dataset.estimate import estimate

        typer.echo(estimate(videos, options))
        return
    where = _backend(backend, address, workers, actors, gpus_per_actor, device)
    say = lambda line: None if quiet else typer.echo(line, err=True)  # noqa: E731
    typer.echo(build_dataset(videos, out, options, workers, device, not quiet, say, where, update).line())


def _backend(
    name: str | None, address: str | None, workers: int | None, actors: int, gpus: float | None, device: str
) -> "Ray | None":
    """Ray where it is asked for, None for the processes of this machine."""
    name = name or ("ray" if address else "local")
    if name not in ("local", "ray"):
        raise UsageError(f"unknown backend {name!r}: {nearest(name, ('local', 'ray'))}")
    if name == "local":
        if address or actors or gpus is not None:
            raise UsageError("--address, --actors and --gpus-per-actor need --backend ray")
        return None
    on_gpu = device != "cpu"
    if on_gpu and not actors:
        raise UsageError("--backend ray with a GPU needs --actors, as many as there are GPUs for the models")
    from vmas.dataset.cluster import Ray

    return Ray(address, workers, actors, float(on_gpu) if gpus is None else gpus)


@app.command(epilog="Example: vmas dataset download --manifest videos.csv --to media/ --limit-rate 1M")
def download(
    manifest: Annotated[Path, typer.Option(help="CSV or parquet with id or url, ...", show_default=False)],
    to: Annotated[Path, typer.Option(help="Folder for <id>.<ext>; give it to 'build' as --media.", show_default=False)],
    limit_rate: Annotated[str, typer.Option(help="Most bytes a second, such as 500K or 2M.")] = "2M",
    pause: Annotated[float, typer.Option(min=0, help="Seconds between two videos.")] = 5.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands only.")] = False,
) -> None:
    """Fetch videos that a manifest names by address or YouTube id, with yt-dlp (the extra 'download')."""
    import shlex

    from vmas.dataset import download as loader
    from vmas.dataset.manifest import read_manifest

    videos, limits = read_manifest(manifest, to), loader.Limits(limit_rate, pause_s=pause)
    say = lambda line: typer.echo(line, err=True)  # noqa: E731
    if dry_run:
        say(loader.note(videos))
        for v in loader.wanted(videos):
            typer.echo(shlex.join(loader.command(v, limits)))
        return
    counts = loader.download(videos, to, limits, say=say)
    typer.echo(f"{to}: " + (", ".join(f"{n} {what}" for what, n in sorted(counts.items())) or "nothing to fetch"))
    if counts["failed"]:
        raise DataError(f"{to / loader.LOG} says what failed; the same command tries it again")


@app.command(epilog="Example: vmas dataset extrapolate disco-mv --cores 92 --gpus 8")
def extrapolate(
    timings: Annotated[Path, typer.Argument(help="A built dataset, or its timings.json.")],
    videos: Annotated[float, typer.Option(help="Videos to look at (DISCO-10M: 15.3 million).")] = 15.3e6,
    hours: Annotated[float, typer.Option(help="Hours of music kept (DISCO-MV: 47,000).")] = 47_000.0,
    nodes: Annotated[list[int] | None, typer.Option(help="Machines (repeatable); default: 1, 8, 64.")] = None,
    cores: Annotated[int, typer.Option(min=1, help="Cores of a machine.")] = 64,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a machine.")] = 8,
    efficiency: Annotated[float, typer.Option(help="Share of the ideal speed that many machines reach.")] = 1.0,
) -> None:
    """What a build of another size would cost, going by what this one took."""
    from vmas.dataset.estimate import extrapolate as table
    from vmas.dataset.estimate import read_timings

    rows = table(read_timings(timings), videos, hours, nodes or (1, 8, 64), cores, gpus, efficiency)
    typer.echo(rows.to_string(index=False, float_format=lambda x: f"{x:,.1f}"))


@app.command(epilog="Example: vmas dataset check disco-mv/train")
def check(folder: Annotated[Path, typer.Argument(help="A folder of shards, or a built dataset.")]) -> None:
    """Compare every shard with its sha256; exit code 1 when one is damaged or missing.

    Of a built dataset, a shard that is not there is made again, byte for byte, when the build command is given again.
    """
    from vmas.dataset import shards

    folders = sorted({p.parent for p in folder.glob("*/" + shards.SHARDS)}) or [folder]
    bad = n = 0
    for one in folders:
        known = shards.read_counts(one)
        built = shards.read_description(one).get("kind") == "built"
        for name, expected in zip(known["shard"], known["sha256"], strict=True):
            n += 1
            if problem := shards.verify_shard(one / name, expected):
                bad += 1
                remedy = "give its build command again" if built else "restore it from a copy"
                delete = "delete it and " if built and (one / name).exists() else ""
                typer.echo(f"{one / name}: {problem}; {delete}{remedy}")
    if bad:
        raise DataError(f"{folder}: {bad} of {n} shards are damaged or missing")
    typer.echo(f"{folder}: {n} shards are whole")
