"""Cells that were found against random and published ones, trained alike, with honest statistics."""
