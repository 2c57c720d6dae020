"""Object stores for artifacts: a folder, S3, R2, MinIO."""
