"""What the runs left: metrics, the page, model cards."""
