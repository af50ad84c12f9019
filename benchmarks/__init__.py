"""Latency, memory and accuracy against the torch reference."""
