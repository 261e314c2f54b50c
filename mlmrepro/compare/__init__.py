"""Whether two values agree. Reads records and goldens; needs neither torch nor transformers."""
