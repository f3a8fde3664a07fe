"""What a trained model is used for (ALIGN, sections 5 and 7). Read in this order:

pictures      find picture files in folders, and read them ahead of the model
retrieval     embed pictures and texts, find the nearest, measure how often the right one is found (R@K)
zero_shot     classify pictures by labels in words, and measure how often the label is right
search        keep the embeddings of a folder's pictures, so that a search is fast
trace         print what each layer does to one picture and one text
inference     `model.for_inference()`: the same numbers, computed faster

The commands that offer all this to a terminal are in the room `commands`.
"""
