#!/bin/sh
# Branch coverage of src/mentatlab, unit and integration apart; fails below 90 % and 80 %.
# Processes that the tests start (servers, agents) are measured too.
set -eu
cd "$(dirname "$0")/.."
measure() { # name, lowest percentage, pytest arguments...
  name=$1 lowest=$2; shift 2
  rm -f ".coverage.$name" ".coverage.$name".*
  export COVERAGE_FILE="$PWD/.coverage.$name"
  .venv/bin/coverage run -m pytest -q -n 2 --dist loadfile -m "not slow" "$@"
  .venv/bin/coverage combine -q
  echo "== $name coverage (at least $lowest %)"
  .venv/bin/coverage report --skip-covered --fail-under="$lowest"
}
measure unit 90 tests agents --ignore tests/integration --ignore tests/e2e
measure integration 80 tests/integration tests/e2e
