"""Many scans over the machines of a Ray cluster, each once, whatever dies in between. See docs/cohort.md."""
