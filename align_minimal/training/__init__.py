"""From image-text pairs on disk to a trained model (ALIGN, sections 3 and 5). In the order of reading:

pairs, shards, dataset      what a pair is, and where pairs are read from
filters                     which noisy pairs the paper drops (section 3)
augment                     crops and flips
processes, batches          who takes part; shuffled batches of pixels and token ids
vocabulary                  how wordpieces are learnt from the texts
lamb                        the paper's optimizer
step, large_batch           one step; and how a batch of 16,384 fits any machine
options, build              what can be chosen, and what is made of the choice
resume, run_folder          what must stay the same in a resumed run; the run on disk
loop, command               step after step; `align-minimal train`
"""
