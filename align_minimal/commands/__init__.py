"""The command line and the pages it makes: flags in, results out."""
