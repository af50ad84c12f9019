"""Training: networks, losses, phantoms, data, loops and evaluation."""
