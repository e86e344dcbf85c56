"""Measurements that anyone can repeat: ours and the installed peers, side by side in one run."""
