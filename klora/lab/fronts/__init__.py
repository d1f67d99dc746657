"""Fronts: every method of fusion over its whole balance from subject to style, in both worlds of the lab."""
