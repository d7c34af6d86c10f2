"""How good, fast and robust AutoLR is; `README.md` lists each benchmark with its command."""
