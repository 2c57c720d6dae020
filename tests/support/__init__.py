"""Real servers and hosts for the tests: each module starts, breaks, heals and stops one kind."""
