"""Workloads and specifications to costs: accelerators and their closed-form models."""
