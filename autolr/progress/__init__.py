"""Who watches a run: callbacks, the live state, and the trackers."""
