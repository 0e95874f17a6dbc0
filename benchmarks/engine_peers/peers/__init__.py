"""One program for each engine; they run in their own environments."""
