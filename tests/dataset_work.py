"""Work for the pool of the dataset builder; imports nothing heavy, since every process that starts reads it."""

import os
import signal
from pathlib import Path

from vmas.dataset import stages
from vmas.dataset.tasks import Screen


def die_once(task: tuple[str, int], tools) -> int:
    """Work for the pool: kills its own process the first time that number 2 comes."""
    folder, i = task
    if i == 2 and not Path(folder, "died").exists():
        Path(folder, "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return i * i


def each_dies_once(task: tuple[str, int], tools) -> int:
    """Work for the pool: every task kills its process the first time."""
    folder, i = task
    if not Path(folder, f"died{i}").exists():
        Path(folder, f"died{i}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return i * i


def die(task, tools) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def strike(item, state, tools) -> dict:
    """A step that kills its own process when an item "killer..." comes: once where the item's path is a folder, which
    then remembers it, else every time."""
    folder = Path(item.path)
    if item.id.startswith("killer") and not (folder / "died").exists():
        if folder.is_dir():
            (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"id": item.id}


def keep(item, state, tools) -> dict:
    return state


class Striking(Screen):
    """A job with that step in the middle, where the models are."""

    steps = (keep, strike, keep)

    def has_models(self, options) -> bool:
        return True


def lethal(item, state, tools) -> dict:
    """A first step that kills its own process when it reads video v3."""
    if Path(item.path).name == "v3.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    return stages.look(item, state, tools)


class Lethal(Screen):
    steps = (lethal, *stages.SCREEN_STEPS[1:])


def threads(task: bytes, tools) -> list[int]:
    """Threads of OpenCV, of torch and of every other library, in a process that has begun a job of Ray."""
    import gc

    import cv2
    import torch
    from threadpoolctl import threadpool_info

    from vmas.dataset import cluster

    cv2.setNumThreads(3)
    torch.set_num_threads(3)
    cluster._here(task)
    gc.collect()
    return [cv2.getNumThreads(), torch.get_num_threads(), *(x["num_threads"] for x in threadpool_info())]
