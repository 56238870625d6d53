"""The report of a study: metrics, the HTML page, model cards."""
