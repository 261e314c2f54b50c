"""The gate measured: faults planted from outside, clean controls, and what of them the suite detects."""
