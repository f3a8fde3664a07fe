"""The command line, and the pages that it makes. Read in this order:

flags         which commands there are, and which flags each takes
page          results as an HTML file, for `--html`
demo          a page in the browser that classifies pictures, for `align-minimal demo`
commands      what each command does with its flags, and how it prints its results

`__main__`, one folder up, starts a command and turns its errors into one line.
"""
