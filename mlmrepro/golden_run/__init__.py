"""The run that the goldens hold, and what is looked at beside it."""
