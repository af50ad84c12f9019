"""A local HTTP API for viewers that embed this software: scans in, findings, masks and pictures out (docs/serve.md)."""
