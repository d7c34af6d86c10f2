"""Which candidate comes next, and which trial ends early."""
