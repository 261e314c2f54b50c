#!/usr/bin/env bash
# Take the lock file LOCK as it is on the branch BASE, and say in the outputs of the step where it is (`from`) and
# whether it differs from the one in the working tree (`changed`). FROM, if given, is taken instead.
set -euo pipefail
say() { printf '%s\n' "$1" >> "$GITHUB_OUTPUT"; }

if [[ -n ${FROM:-} ]]; then
    say "from=$FROM"
    say "changed=true"
    exit 0
fi
if [[ ! -f $LOCK ]]; then
    printf '%s\n' "::error::there is no lock file $LOCK. Remedy: give its path in the repository as the input lock."
    exit 2
fi
git fetch --no-tags --depth=1 origin "+refs/heads/$BASE:refs/remotes/origin/$BASE"
# The file keeps its name: the ending says what kind of lock file it is.
before=mlmrepro-runs/base/$(basename -- "$LOCK")
mkdir -p "$(dirname -- "$before")"
if ! git show "refs/remotes/origin/$BASE:${LOCK#./}" > "$before"; then
    printf '%s\n' "::error::the branch $BASE has no $LOCK, so nothing can be compared with it. Remedy: give the input from, such as newest."
    exit 2
fi
say "from=$before"
if cmp -s -- "$before" "$LOCK"; then
    printf '%s\n' "::notice::$LOCK is the same as on $BASE: there is no upgrade to judge."
    say "changed=false"
else
    say "changed=true"
fi
