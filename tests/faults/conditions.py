"""Under what conditions a case runs: what may differ between two clean machines, and must raise no alarm."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Conditions", "Control", "all_controls"]

RUNS = 88  # controls that are runs; the versions' records come on top


@dataclass(frozen=True)
class Conditions:
    """What varies between controls. The golden run's own seed and processes are the reference's as well."""

    run_seed: int = 42  # of the golden run
    num_proc: int = 1  # of its map calls
    mask_seed: int = 0  # of the gate's mask plan
    law_seed: int = 0  # of what the laws draw
    threads: int = 1
    generators: int | None = None  # seed that random, numpy and torch are left at before anything starts
    directory: str = ""  # a folder of another name and depth to work in, temporary files included
    environment: tuple[tuple[str, str], ...] = ()  # which an interpreter of its own starts with
    text: int = 0  # the laws' texts begin at this document

    @property
    def reference(self) -> tuple[int, int, int]:
        """What a clean record and a baseline have to share to be compared."""
        return self.run_seed, self.num_proc, self.mask_seed


@dataclass(frozen=True)
class Control:
    """A clean case: nothing is broken."""

    name: str
    kind: str  # seeds, threads, processes, directories, environment
    conditions: Conditions


_ENVIRONMENTS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("TZ", "Pacific/Auckland"),),
    (("LC_ALL", "C"),),
    (("TOKENIZERS_PARALLELISM", "true"), ("RAYON_NUM_THREADS", "2")),
    (("TOKENIZERS_PARALLELISM", "false"),),
    (("COLUMNS", "40"), ("NO_COLOR", "1")),
    (("OMP_NUM_THREADS", "2"), ("MKL_NUM_THREADS", "2")),
    (("TRANSFORMERS_VERBOSITY", "error"),),
    (("PYTHONUTF8", "1"),),
)
_DIRECTORIES = ("a b", "ä/ö/ü", "x" * 20, "deep/er/and/deeper", "run", "model", "it's", "名前")


def all_controls() -> list[Control]:
    """Return the controls that are runs, each of its kind, always the same ones."""
    controls = []
    for n in range(RUNS):
        kind = ("seeds", "threads", "processes", "directories", "environment")[n % 5]
        turn = n // 5
        if kind == "seeds":
            conditions = Conditions(
                run_seed=(42, 7)[turn % 2],
                mask_seed=turn % 2,
                law_seed=turn + 1,
                generators=1000 + turn,
                environment=(("PYTHONHASHSEED", str(turn)),) if turn % 6 == 0 else (),
                text=turn,
            )
        elif kind == "threads":
            conditions = Conditions(threads=2, law_seed=100 + turn, text=turn % 3)
        elif kind == "processes":
            conditions = Conditions(num_proc=2, law_seed=200 + turn, threads=1 + turn % 2)
        elif kind == "directories":
            conditions = Conditions(directory=_DIRECTORIES[turn % len(_DIRECTORIES)], law_seed=300 + turn)
        else:
            conditions = Conditions(environment=_ENVIRONMENTS[turn % len(_ENVIRONMENTS)], law_seed=400 + turn)
        controls.append(Control(f"{kind}-{turn + 1}", kind, conditions))
    return controls
