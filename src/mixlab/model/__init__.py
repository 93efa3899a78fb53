"""Language models built from parts, and the count-based n-gram."""
