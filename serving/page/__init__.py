"""The live page's own files (assets/) and what renders it."""
