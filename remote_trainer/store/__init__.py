"""The durable store of jobs: SQLite (embedded) and MongoDB."""
