"""Pictures of the numbers that matter."""
