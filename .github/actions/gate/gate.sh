#!/usr/bin/env bash
# Run `mlmrepro gate` with the inputs of the action, GATE_*, and say how it ended in the outputs of the step.
set -euo pipefail
folder=mlmrepro-runs/gate
mkdir -p "$folder"
# Joined with =, so that a value which begins with a dash is still a value.
command=(gate "--from=$GATE_FROM" "--to=$GATE_TO" "--budget=$GATE_BUDGET"
    "--junit=$folder/junit.xml" "--html=$folder/gate.html")
if [[ -n $GATE_GOLDENS ]]; then
    command+=("--goldens=$GATE_GOLDENS")
fi
while IFS= read -r argument; do
    if [[ -n $argument ]]; then
        command+=("$argument")
    fi
done <<< "$GATE_ARGUMENTS"

code=0
mlmrepro "${command[@]}" | tee "$folder/gate.txt" || code=$?
case $code in
    0) verdict=passed ;;
    1) verdict=failed ;;
    *) verdict=error ;;
esac
headline=$(grep -m 1 '[^[:space:]]' "$folder/gate.txt" | tr -d '\r' || true)
printf '%s\n' "verdict=$verdict" "exit-code=$code" "headline=$headline" >> "$GITHUB_OUTPUT"
exit "$code"
