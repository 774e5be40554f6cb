"""In-domain adapters: those that come with the package, and how a run finds one that fits it."""
