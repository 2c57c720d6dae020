"""Real training of tiny models on the CPU."""
