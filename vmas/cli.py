"""The `vmas` command line.

Exit codes: 0 done, 1 something failed, 2 the command was wrong, 130 stopped by Ctrl-C. Errors are one
line on stderr; `--debug` anywhere on the line adds the traceback. Heavy libraries are imported inside the
commands, so that `vmas --help` answers at once.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vmas.dataset.cli import app as dataset_app
from vmas.errors import UsageError, VmasError

EPILOG = """
Examples:

\b
  vmas reproduce table3                       the paper's Table 3, small (profile mini)
  vmas reproduce table3 --profile smoke       every stage from nothing, in minutes
  vmas generate clip.mp4 -o scored.mp4        music for your own video
  vmas corpus make --split test               the procedural test clips as mp4 files
  vmas weights list                           public weights of the paper profile
"""

app = typer.Typer(
    help="Companion of VMAs: music for videos, and the paper's numbers at a scale that fits here.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)
corpus_app = typer.Typer(help="The procedural corpus of music videos.", no_args_is_help=True)
weights_app = typer.Typer(help="Public weights that the paper profile uses.", no_args_is_help=True)
app.add_typer(corpus_app, name="corpus")
app.add_typer(weights_app, name="weights")
app.add_typer(dataset_app, name="dataset")

Profile = Annotated[str, typer.Option(help="smoke, mini, paper, or the path of a YAML file.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the profile, such as train.steps=200."),
]


def _version(wanted: bool) -> None:
    if wanted:
        from vmas import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _everywhere(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere on the line.")] = False,
) -> None:
    pass


def overrides(settings: Sequence[str]) -> dict:
    """`["train.steps=200"]` → `{"train": {"steps": 200}}`; values are read as YAML. Raises UsageError."""
    import yaml

    out: dict = {}
    for one in settings:
        key, sep, text = one.partition("=")
        parts = key.strip().split(".")
        if not sep or not all(parts):
            raise UsageError(f"--set {one}: write KEY=VALUE, for example train.steps=200")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise UsageError(f"--set {one}: the value is not valid YAML") from e
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)  # YAML 1.1 reads 1e-3 as text
        place = out
        for part in parts[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise UsageError(f"--set {one}: {part} was already given a value")
        place[parts[-1]] = value
    return out


def _profile(name: str, settings: Sequence[str] | None = None):
    from vmas import config

    return config.load(name, overrides(settings or []))


def _own_folder(profile: str, settings: Sequence[str] | None, out: Path | None):
    """The profile; a changed one must not overwrite what belongs to the profile as it stands."""
    if settings and out is None:
        raise UsageError("--set changes the profile: name a folder with -o, so that the profile's own stays as it is")
    return _profile(profile, settings)


def _say(line: str) -> None:
    typer.echo(line, err=True)


@app.command(epilog="Example: vmas generate holiday.mp4 -o scored.mp4; several: vmas generate a.mp4 b.mp4 -o out/")
def generate(
    ctx: typer.Context,
    videos: Annotated[list[Path], typer.Argument(help="Video files.", show_default=False)],
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="A file, or a folder for several; default: beside each video.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of a trained model; default: the profile's committed one.")
    ] = None,
    profile: Profile = "mini",
    seed: Seed = 0,
    duration: Annotated[float | None, typer.Option(help="Only the first so many seconds.")] = None,
    device: Device = "auto",
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Time and peak memory of each video.")] = False,
    quiet: Quiet = False,
) -> None:
    """Give videos generated music of exactly their length; the pictures are copied untouched."""
    from vmas.generate import generate_videos

    name = _profile(profile).name
    debug = bool(ctx.obj)
    summary = generate_videos(videos, out, checkpoint, name, seed, duration, device, verbose, not quiet, debug=debug)
    raise typer.Exit(summary.exit_code)


@app.command(epilog="Example: vmas evaluate --videos clips/ --audio generated/  (pairs files by name, without suffix)")
def evaluate(
    videos: Annotated[Path, typer.Option(help="Folder of videos.", show_default=False)],
    audio: Annotated[Path, typer.Option(help="Folder of the music to judge, files named as the videos.")],
    reference: Annotated[
        Path | None, typer.Option(help="Folder of reference music; default: the videos' own soundtracks.")
    ] = None,
    profile: Profile = "mini",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write result.json here.")] = None,
    quiet: Quiet = False,
) -> None:
    """FAD, KL and MV Align of your own music files, with intervals and chance."""
    from vmas import records
    from vmas.experiments.folders import evaluate_folders
    from vmas.report import table

    record = evaluate_folders(_profile(profile), videos, audio, reference, progress=not quiet)
    typer.echo(table.plain(record))
    if out is not None:
        records.write_result(record, out / "result.json" if out.is_dir() else out)


@corpus_app.command("make", epilog="Example: vmas corpus make --profile mini --split test --split shifted")
def corpus_make(
    profile: Profile = "mini",
    split: Annotated[list[str] | None, typer.Option(help="train, val, test or shifted; default: all.")] = None,
    clip: Annotated[list[str] | None, typer.Option(help="Only this clip, such as test-00017 (repeatable).")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder; default: the cache.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
    settings: Setting = None,
    quiet: Quiet = False,
) -> None:
    """Write the clips of the procedural corpus as mp4 files with a manifest; a stopped run goes on."""
    from vmas import paths
    from vmas.corpus import make

    cfg = _own_folder(profile, settings, out)
    # Single clips go to a folder of their own: the cache's manifest always covers whole splits.
    folder = out or (Path("clips") if clip else paths.corpus(cfg.name))
    typer.echo(str(make(folder, cfg, split or None, workers, clip or None, not quiet)))


@app.command(
    epilog="Example: vmas train --profile smoke --seed 1 --set train.steps=200 -o my-model; give it again to resume"
)
def train(
    profile: Profile = "mini",
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the checkpoint; default: the profile's own.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of shards (train/ and val/) instead of the procedural corpus.")
    ] = None,
    settings: Setting = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, FLOPs, memory and days of the run; train nothing.")
    ] = False,
    gpus: Annotated[int, typer.Option(help="--dry-run: number of GPUs.")] = 32,
    gpu: Annotated[str, typer.Option(help="--dry-run: a100, h100 or h200.")] = "a100",
    sharding: Annotated[str, typer.Option(help="--dry-run: ddp or fsdp (full shard).")] = "ddp",
    mfu: Annotated[float, typer.Option(help="--dry-run: share of the GPU's peak to assume.")] = 0.45,
    quiet: Quiet = False,
) -> None:
    """Train VMAs (motion, music, then L = βL_c + L_g) with what it needs before; also under accelerate launch."""
    if dry_run:
        from vmas.training import cost_report

        typer.echo(cost_report.dry_run(_profile(profile, settings), gpus, gpu, sharding, mfu))
        return
    from vmas import pipeline

    cfg = _own_folder(profile, settings, out)
    if shared := sorted({"corpus", "codec"} & set(overrides(settings or []))):
        raise UsageError(
            f"--set {shared[0]}.… would change the clips and tokens that all models of profile {cfg.name} share: write"
            " a profile of your own, a YAML file with another name, and give its path as --profile"
        )
    typer.echo(str(pipeline.train(cfg, seed, device, out, not quiet, _say, data)))


@app.command(
    epilog="Example: vmas reproduce table3 --profile smoke --dry-run; 'vmas reproduce list' names every target"
)
def reproduce(
    target: Annotated[str, typer.Argument(help="A target, 'all' or 'list'.", show_default=False)],
    profile: Profile = "mini",
    seed: Seed = 0,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Generate and evaluate again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and what is there.")] = False,
    save_record: Annotated[
        bool, typer.Option("--save-record", help="Also put the record among the committed ones (results/runs).")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of a sweep (table5, table6, fig6, fig7, cleaning, corpora): train every row with so many seeds.",
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Of a sweep: only this condition (repeatable).")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Of a sweep: runs at a time on each GPU.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Recompute a table or figure of the paper."""
    from vmas.experiments import registry

    if target == "list":
        typer.echo(registry.listing())
        return
    from vmas.experiments import runner

    wanted = registry.available() if target == "all" else [registry.get(target)]
    cfg, failed = _profile(profile), []
    for one in wanted:
        try:
            if one.sweep:
                # one run of a sweep is named by --only and --seed, all of them by --seeds
                chosen = [*range(seeds)] if seeds else [seed] if only else []
                if dry_run:
                    typer.echo(runner.plan_sweep(one, profile, chosen or [seed], only))
                else:
                    runner.run_sweep(
                        one, profile, chosen, only, device, jobs, force, save_record, not quiet, _say, typer.echo
                    )
            elif dry_run:
                typer.echo(runner.plan(one, cfg, seed))
            else:
                runner.run_target(one, profile, seed, device, force, save_record, not quiet, say=_say, show=typer.echo)
        except VmasError as e:
            if target != "all" or isinstance(e, UsageError):
                raise
            failed.append(one.name)
            _say(f"error: {one.name}: {e}")
    if target == "all" and (planned := registry.planned()):
        _say(f"not available yet: {', '.join(t.name for t in planned)}")
    if failed:
        raise VmasError(f"{len(failed)} of {len(wanted)} targets failed: {', '.join(failed)}")


@weights_app.command("list")
def weights_list() -> None:
    """What the paper profile downloads, from where, under which licence, and whether it is here."""
    from vmas import weights

    for w in weights.REGISTRY.values():
        typer.echo(f"{w.name:18} {weights.status(w.name):8} {w.licence:14} {w.used_for}\n{'':18} {w.source}")
    typer.echo(f"folder: {weights.folder()} (VMAS_WEIGHTS names another)")


Names = Annotated[list[str], typer.Argument(help="Names of 'vmas weights list'.", show_default=False)]


@weights_app.command("fetch", epilog="Example: vmas weights fetch vggish")
def weights_fetch(names: Names, quiet: Quiet = False) -> None:
    """Download weights into the folder and check them."""
    from vmas import weights

    for name in names:
        weights.get(name)
    for name in names:
        typer.echo(str(weights.fetch(name, not quiet)))


@weights_app.command("verify", epilog="Example: vmas weights verify vggish; without a name: all that are here")
def weights_verify(names: Annotated[list[str] | None, typer.Argument(show_default=False)] = None) -> None:
    """Check the sha256 of local copies."""
    from vmas import weights

    chosen = names or [n for n in weights.REGISTRY if weights.status(n) == "present"]
    if not chosen:
        typer.echo(f"no weights in {weights.folder()}")
    for name in chosen:
        typer.echo(f"{name}: {weights.verify(name)}")


RESUME = {  # `generate` says it itself, with counts
    "reproduce": "finished stages and clips are kept; give the same command to go on",
    "train": "the last state is on disk; give the same command to go on",
    "corpus": "finished clips are kept; give the same command to go on",
    "dataset": "finished shards are kept; give the same command to go on",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code and never raises an Exception."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    try:
        code = app(args=args, prog_name="vmas", standalone_mode=False, obj=debug)
        code = code if isinstance(code, int) else 0
    except typer.TyperException as e:
        if debug:
            raise
        return _fail(" ".join(e.format_message().split()), getattr(e, "exit_code", 2), "see 'vmas --help'")
    except VmasError as e:
        if debug:
            raise
        return _fail(str(e), e.exit_code)
    except KeyboardInterrupt:
        code = 130
    except Exception as e:
        if debug:
            raise
        return _fail(f"unexpected {type(e).__name__}: {' '.join(str(e).split())}", 1, "--debug shows where")
    if code == 130:
        command = next((a for a in args if not a.startswith("-")), "")
        if command != "generate":
            _say(f"\nstopped: {RESUME.get(command, 'nothing half-written is left')}")
    return code


def _fail(text: str, code: int, hint: str = "") -> int:
    _say(f"error: {text}" + (f" ({hint})" if hint else ""))
    return code
