"""Which matrices and which ratio λ learn best."""
