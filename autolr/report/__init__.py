"""From a search to figures and a page."""
