"""What attention does and what theory says: heads, bounds, and the terms of one step."""
