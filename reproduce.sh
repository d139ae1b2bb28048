#!/usr/bin/env bash
# ./reproduce.sh setup | list | TARGET [--profile smoke|mini|paper] [--seed N] [--device D] [--force] [--dry-run] | test
# Makes .venv from requirements.lock when it is missing or out of date, then hands over to `vmas`.
# An active conda environment or venv that satisfies the pins is used as it is; VMAS_NO_VENV=1 forces that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

die() { printf 'reproduce.sh: %s\n' "$1" >&2; exit 1; }
lock_hash() { cat requirements.lock pyproject.toml | { sha256sum 2>/dev/null || shasum -a 256; } | cut -d' ' -f1; }

find_python() { # the first Python 3.11, else 3.12
  local want name
  for want in 11 12; do
    for name in "python3.$want" python3 python; do
      if "$name" -c "import sys; sys.exit(sys.version_info[:2] != (3, $want))" 2>/dev/null; then
        command -v "$name"; return
      fi
    done
  done
}

find_uv() { # uv on the PATH, else a private copy
  command -v uv && return
  if [ ! -x .cache/uv/bin/uv ]; then
    "$1" -m venv .cache/uv 1>&2 || die "no uv and no working 'python -m venv': install uv, or your system's python3-venv package"
    .cache/uv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1" 1>&2 || die "could not install uv: check the network"
  fi
  echo .cache/uv/bin/uv
}

install() { # into the environment of the Python $1, with the uv $2; no resolving: the lock is complete
  "$2" pip install --quiet --no-deps --require-hashes -r requirements.lock -p "$1" && "$2" pip install --quiet --no-deps --no-build-isolation -e . -p "$1"
}

prefix="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
if [ "${VMAS_NO_VENV:-}" = 1 ]; then
  python="${prefix:+$prefix/bin/python}"; python="${python:-$(command -v python3)}"
  if [ "${1:-}" = setup ]; then install "$python" "$(find_uv "$python")"; fi
  "$python" vmas/pins.py requirements.lock || die "VMAS_NO_VENV=1, but this environment differs from the pins: run 'VMAS_NO_VENV=1 ./reproduce.sh setup' to install them into it"
elif [ -n "$prefix" ] && "$prefix/bin/python" vmas/pins.py requirements.lock >/dev/null 2>&1; then
  python="$prefix/bin/python"
else
  python=.venv/bin/python
  unset PYTHONDONTWRITEBYTECODE # the environment is ours: its modules are compiled once, not at every start
  if [ "$(cat .venv/stamp 2>/dev/null)" != "$(lock_hash)" ]; then
    base="$(find_python)"; [ -n "$base" ] || die "needs Python 3.11 or 3.12: none found on the PATH"
    uv="$(find_uv "$base")"
    echo "Making .venv (about 6 GB, a minute or two on a fast link) ..." >&2
    { "$uv" venv --quiet --clear --python "$base" .venv && install "$python" "$uv"; } || die "the environment could not be made: see the message above"
    lock_hash >.venv/stamp
  fi
fi

case "${1:-help}" in
  setup) echo "Environment ready: $("$python" -V), packages as pinned in requirements.lock" ;;
  test) shift; exec "$python" -m vmas.testing "$@" ;;
  help | -h | --help) sed -n '2,4s/^# //p' reproduce.sh; exec "$python" -m vmas reproduce list ;;
  *) exec "$python" -m vmas reproduce "$@" ;;
esac
