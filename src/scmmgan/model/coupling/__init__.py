"""Couplings of cells with landmarks of another modality."""
