"""Figures, never assertions: timings are ratios within one run."""
