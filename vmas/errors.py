"""Errors that a user can act on: one line that names the file and what to do.

The command line prints them without a traceback and exits with `exit_code`.
"""


class VmasError(Exception):
    """Base of every expected failure; its text is one line, fit for the terminal."""

    exit_code = 1


class UsageError(VmasError):
    """The command, option, target, profile or config is wrong (exit code 2)."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration has an unknown key, a missing key or a value of the wrong kind."""


class MediaError(VmasError):
    """A media file cannot be read or written. `path` names it, `problem` says what, `hint` what to do."""

    def __init__(self, path, problem: str, hint: str = ""):
        self.path = path
        self.problem = problem
        self.hint = hint
        super().__init__(f"{path}: {problem}" + (f" ({hint})" if hint else ""))


class CheckpointError(VmasError):
    """A checkpoint is missing, altered, or of another architecture."""

    def __init__(self, path, problem: str, hint: str = ""):
        self.path = path
        super().__init__(f"{path}: {problem}" + (f" ({hint})" if hint else ""))


class WeightsUnavailable(VmasError):
    """Public weights that the paper profile needs are not on this machine."""


class DataError(VmasError):
    """Numbers that a metric or a table cannot be computed from (NaN, too few rows, other shapes)."""


def nearest(name: str, known) -> str:
    """Return `" (did you mean a, b?)"` for the known names nearest to `name`, or a list of all."""
    import difflib

    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known)}"
