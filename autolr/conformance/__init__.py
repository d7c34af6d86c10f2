"""The conformance kit: what must hold on a model before a search on it can be trusted.

Each check takes a few steps on a handful of random tokens. MergedState they say that AutoLR has
found W_q, W_k and W_v where they are, that a packed slot learns what the same adapter learns
alone, that W_k stays as it is, and that what is saved is a stock PEFT adapter.
"""

from __future__ import annotations

from autolr.conformance.kit import Check as Check
from autolr.conformance.kit import run as run
