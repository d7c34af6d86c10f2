"""What happens when processes die, files are broken, or many workers share a search."""
