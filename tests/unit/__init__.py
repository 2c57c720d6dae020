"""Pure and fast: no network, no process, no waiting."""
