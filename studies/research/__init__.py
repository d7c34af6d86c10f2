"""Studies behind AutoLR's defaults and the papers' claims; `README.md` lists them."""
