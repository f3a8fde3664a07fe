"""What a trained model is used for (ALIGN, sections 5 and 7). README.md lists the files in reading order.

The commands that offer all this to a terminal are in the room `commands`.
"""
