"""What attention heads tell, and what they can be used for."""
