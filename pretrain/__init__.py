"""The model, its objectives, the data order, the DeepSpeed run and the checkpoint converter."""
