"""What holds the project itself together: imports, READMEs, packaging, scripts, the tools and helpers of tests."""
