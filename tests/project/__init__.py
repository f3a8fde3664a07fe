"""What holds the project itself together: the order of imports, README, and the tools of tests/lab."""
