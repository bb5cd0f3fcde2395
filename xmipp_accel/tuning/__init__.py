"""What is fastest on this machine: measured, and kept for later runs."""
