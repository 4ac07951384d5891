"""What a machine is: arrays, cells, memories, chips, and where each number is from."""
