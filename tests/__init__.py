"""The tests of remote_trainer; how they are arranged is told in docs/testing.md."""
