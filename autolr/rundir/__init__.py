"""What a run leaves on disk: its folder, its records, its storage, and the result read back from them."""
