"""The dashboard and the JSON API: one process, beside the command line. Reads statistics, acts through QueueManager."""
