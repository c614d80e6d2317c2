"""What people look at: a page, plots, a model card, one CSV of many runs."""
