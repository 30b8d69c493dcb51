"""The figures of the paper, and what comes of its settings here."""
