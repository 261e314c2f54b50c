#!/usr/bin/env bash
# Install mlmrepro from the checkout that holds this script, in an environment of its own. The libraries that it
# measures are not needed here: torch, transformers and datasets are only in the environments that it makes.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
home=$RUNNER_TEMP/mlmrepro
python -m venv "$home"
"$home/bin/python" -m pip install --quiet --constraint "$checkout/.ci/constraints/newest.txt" \
    filelock jinja2 matplotlib packaging rich scipy typer
"$home/bin/python" -m pip install --quiet --no-deps "$checkout"
# Only the command, so that `python` is still the caller's in the steps that follow.
mkdir -p "$home/command"
ln -sf "$home/bin/mlmrepro" "$home/command/mlmrepro"
printf '%s\n' "$home/command" >> "$GITHUB_PATH"
