"""What worker processes import, loaded once in the server that they are forked from (`vmas.pools`).

Imports alone: nothing here may start a thread of its own or touch a GPU. What fails is left to the worker that needs
it, whose message says more.
"""

import contextlib

with contextlib.suppress(Exception):
    import av  # noqa: F401
    import cv2  # noqa: F401
    import pandas  # noqa: F401
    import torch  # noqa: F401

    from vmas import compiled

    if compiled.librosa_is_made():  # else it takes half a minute, for which most workers need not wait
        compiled.librosa("segment", "decompose")
