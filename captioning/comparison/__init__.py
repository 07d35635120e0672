"""Studies and reports that compare trained systems."""
