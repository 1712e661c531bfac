"""The `batching` command."""
