"""Use cases: what the command line (and later the API) can ask for. The only way they reach store, drivers and hosts."""
