#!/bin/sh
# Branch coverage of src/mentatlab, unit and integration apart; fails below 90 % and 80 %.
# Processes that the tests start (servers, agents) are measured too, unless they end by SIGKILL.
set -eu
cd "$(dirname "$0")/.."

# Agents get an environment built from nothing, without coverage's variables: while this runs, a
# module in .venv starts their measurement.
starter=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/measure_agents
trap 'rm -f "$starter.py" "$starter.pth"' EXIT
trap 'exit 130' INT TERM
measure_agents() {
  cat >"$starter.py" <<EOF
import os
from coverage import Coverage
if "COVERAGE_FILE" not in os.environ:
    agent = Coverage("$COVERAGE_FILE", data_suffix=True, auto_data=True, config_file="$PWD/pyproject.toml")
    agent.set_option("run:patch", [])  # it would add to the agent's environment
    agent.set_option("run:disable_warnings", ["module-not-imported", "no-data-collected"])
    agent.start()
EOF
  echo "import measure_agents" >"$starter.pth"
}

measure() { # name, lowest percentage, pytest arguments...
  name=$1 lowest=$2; shift 2
  rm -f ".coverage.$name" ".coverage.$name".*
  export COVERAGE_FILE="$PWD/.coverage.$name"
  measure_agents
  .venv/bin/coverage run -m pytest -q -n 2 --dist loadfile -m "not slow" "$@"
  .venv/bin/coverage combine -q
  echo "== $name coverage (at least $lowest %)"
  .venv/bin/coverage report --skip-covered --fail-under="$lowest"
}
measure unit 90 tests agents --ignore tests/integration --ignore tests/e2e
measure integration 80 tests/integration tests/e2e
