"""What packs, searches, heads and the report cost: time, memory and counted work."""
