#!/usr/bin/env bash
# Keep one open issue, found by its label, that says what the newest releases change: opened when something fails,
# rewritten when the result is another one, closed when all is well again. An unchanged result is not told twice.
# CODE is the exit code of newest.sh, REPORT its file, RUN the address of this run, LABEL and TITLE are the issue's.
set -euo pipefail
body=$(mktemp)
trap 'rm -f "$body"' EXIT
open=$(gh issue list --state open --label "$LABEL" --limit 100 --json number --jq 'map(.number) | min // empty')

if [[ $CODE == 0 ]]; then
    if [[ -n $open ]]; then
        gh issue close "$open" --comment "The newest releases change nothing that is not declared: $RUN"
    fi
    exit 0
fi

# What GitHub takes is 65,536 characters.
report=$(head -c 50000 "$REPORT" | iconv -c -f utf-8 -t utf-8 || true)  # what is cut may end within a character
if [[ -z $report ]]; then
    report="The run ended with exit code ${CODE:-unknown} and without a report. The log says why."
fi
mark="<!-- mlmrepro $(printf '%s\n' "$report" | sha256sum | cut -c 1-16) -->"
printf '%s\n\n%s\n\n%s\n' "$report" "Found by $RUN, which has the page, the records and the logs." "$mark" > "$body"

if [[ -z $open ]]; then
    gh label create "$LABEL" --force --description "What the newest releases change" --color d93f0b
    gh issue create --title "$TITLE" --label "$LABEL" --body-file "$body"
elif [[ $(gh issue view "$open" --json body --jq .body) != *"$mark"* ]]; then
    gh issue edit "$open" --title "$TITLE" --body-file "$body"
    gh issue comment "$open" --body "The result is another one now, see above: $RUN"
fi
