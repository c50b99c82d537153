"""Quality metrics, confidence intervals, result files and plots; imports nothing else of ours."""
