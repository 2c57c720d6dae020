"""Ways to a host: SSH and local commands, and files over them."""
