"""A durable remote-execution worker over SSH for rented GPUs."""
