"""Reports for people and CI. They read records and need neither torch nor transformers."""
