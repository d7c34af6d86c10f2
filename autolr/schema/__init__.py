"""The parts of the documents: sections of a study, and what their values may be."""
