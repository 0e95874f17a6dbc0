"""Data package: model weights, cards and labels. See `NOTICE.md` for their sources."""
