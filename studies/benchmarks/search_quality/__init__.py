"""How good the recipes of a search are, against stock searches."""
