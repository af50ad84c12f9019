"""Evaluation: truths of scans, what the networks made of them, and the figures, tables and plots over many scans."""
