"""What the machine does to a training: kills, full disks, other processes."""
