"""Other tools' files: recipes written for them, and their set-ups taken over as studies."""
