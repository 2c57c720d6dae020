"""Our parts against real ones: OpenSSH, containers, MongoDB's protocol, S3."""
