"""Vertebrae on CT, found, segmented and graded: the lean, torch-free runtime."""
