"""The goldens of one pytest run: a golden written in a run never satisfies a test of the same run."""

from __future__ import annotations

import json
from typing import Any

from mlmrepro.compare.golden import Entry, Golden
from mlmrepro.compare.store import GoldenStore, Obtained
from mlmrepro.compare.values import differences


class SessionStore(GoldenStore):
    """A store that holds new entries back until the run ends, unless an update was requested.

    So a second attempt at a test, another test and another worker all find that there was no golden.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._new: dict[tuple[str, str], tuple[Entry, dict[str, Any]]] = {}  # each with the settings of its run
        self._disputed: set[tuple[str, str]] = set()

    def _absent(self, golden: Golden, key: str, obtained: Obtained, entry: Entry) -> str:
        if self.update:
            return super()._absent(golden, key, obtained, entry)
        where = f"{self.path(key)}: {obtained.name!r}: there was no golden"
        if not self._hold(key, obtained.name, entry, self.settings):
            return f"{where}, and this run obtained different values, so none is written"
        advice = "the next run compares with it; --golden-update=new writes all missing ones at once"
        return f"{where}; this one is written when the run ends: {advice}\n  obtained: {obtained.value!r:.300}"

    def _hold(self, key: str, name: str, entry: Entry, settings: dict[str, Any]) -> bool:
        """Keep an entry for the end of the run; return whether all values obtained under its name agree."""
        first, _ = self._new.setdefault((key, name), (entry, settings))
        values = first.variants[0].value, entry.variants[0].value
        if first.lane is not entry.lane or differences(first.lane, *values, first.tolerance):
            self._disputed.add((key, name))
        return (key, name) not in self._disputed

    def state(self) -> str:
        """Return, as JSON, what a worker of pytest-xdist sends to the controller."""
        new = [[*where, entry.to_dict(), settings] for where, (entry, settings) in self._new.items()]
        return json.dumps({"new": new, "disputed": sorted(self._disputed)})

    def merge(self, state: str) -> None:
        """Take over what a worker sent."""
        given = json.loads(state)
        for key, name, entry, settings in given["new"]:
            self._hold(key, name, Entry.from_dict(entry), settings)
        self._disputed |= {(key, name) for key, name in given["disputed"]}

    def write_new(self) -> None:
        """Write the held-back entries, except those that tests disagreed about; raises OSError."""
        for (key, name), (entry, settings) in self._new.items():
            self.settings = settings
            if (key, name) not in self._disputed:
                with self._opened(key) as golden:
                    golden.entries.setdefault(name, entry)
                    self._written.add((key, name))
        self.settings = {}
