"""The worker: claim, observe, decide, save, perform."""
