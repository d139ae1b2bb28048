"""Work for the pool of the dataset builder; imports nothing heavy, since every process that starts reads it."""

import os
import signal
from pathlib import Path


def die_once(task: tuple[str, int], tools) -> int:
    """Work for the pool: kills its own process the first time that number 2 comes."""
    folder, i = task
    if i == 2 and not Path(folder, "died").exists():
        Path(folder, "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return i * i


def die(task, tools) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
