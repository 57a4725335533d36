"""The worker process that runs a model on a device and reports what it measured."""
