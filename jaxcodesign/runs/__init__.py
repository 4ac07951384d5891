"""What keeps a run alive: session, loop, checkpoints, processes, mesh, signals, config."""
