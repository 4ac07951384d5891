"""Arrays to arrays: number formats, term encodings, rounding."""
