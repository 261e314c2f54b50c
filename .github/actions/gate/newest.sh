#!/usr/bin/env bash
# Measure the environments ENVS, one a line, with `mlmrepro matrix`. The Markdown report goes to REPORT and to the
# summary of the job, the exit code to the outputs of the step. Ends with 0: issue.sh says what was found.
set -euo pipefail
command=(matrix "--junit=mlmrepro-runs/matrix/junit.xml")
while IFS= read -r envs; do
    if [[ -n $envs ]]; then
        command+=("--envs=$envs")
    fi
done <<< "$ENVS"
if [[ -n ${GOLDENS:-} ]]; then
    command+=("--goldens=$GOLDENS")
fi
: > "$REPORT"
code=0
GITHUB_STEP_SUMMARY=$REPORT mlmrepro "${command[@]}" || code=$?
cat "$REPORT" >> "$GITHUB_STEP_SUMMARY"
printf '%s\n' "exit-code=$code" >> "$GITHUB_OUTPUT"
