"""Operands to values and cycles: every array, one scan step a clock cycle."""
