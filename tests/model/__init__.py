"""The towers, the loss, the model, its configuration and its checkpoints: a file a layer."""
