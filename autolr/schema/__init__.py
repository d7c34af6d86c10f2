"""The documents users write and read: studies, recipes, candidates, and how YAML becomes one."""
