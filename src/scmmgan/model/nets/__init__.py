"""Networks, losses, training."""
