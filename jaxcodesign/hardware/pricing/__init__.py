"""Workload, machine and mapping to seconds, joules and square millimetres."""
