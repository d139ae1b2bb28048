"""Training, as a module: what `accelerate launch` and `torchrun` start.

    vmas train --profile mini                     # one process
    accelerate launch -m vmas.train --profile paper

The loop is `vmas.training.loop`, the stages `vmas.training.stages`, launch files for one GPU to four nodes
lie in `examples/launch`.
"""

from vmas.training.loop import Preempted, Stage, fit, validate
from vmas.training.stages import train_profile

__all__ = ["Preempted", "Stage", "fit", "train_profile", "validate"]

if __name__ == "__main__":
    import sys

    from vmas.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
