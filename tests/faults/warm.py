"""Imported by the process that cases are forked from, so that each of them starts in milliseconds."""

from tests.faults.worker import warm_up

warm_up()
