"""What a run writes: whole or absent, sealed by digests, never of another config."""
