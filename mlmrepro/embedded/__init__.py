"""The embedded profile."""
