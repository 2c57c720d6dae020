"""What runs on the host, and its clients."""
