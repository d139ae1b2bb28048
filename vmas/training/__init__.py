"""Training: what is trained (`tasks`), on which rows in which order (`order`), the loop on Accelerate (`loop`),
its state on disk (`state`), the stages of a profile (`stages`) and what a run will cost (`cost`).

`vmas.train` is the way in.
"""
