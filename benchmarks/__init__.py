"""Speed, measured; see RESULTS.md."""
