"""What keeps a run alive: loop, checkpoints, processes, mesh, signals, configs."""
