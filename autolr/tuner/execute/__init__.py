"""How jobs are trained, scored and kept."""
