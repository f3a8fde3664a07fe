"""What holds the project itself together: imports, READMEs, packaging, scripts, and the tests' own tools."""
