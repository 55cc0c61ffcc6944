"""How the zoo was trained: data, the training loop, one script a model. Needed only to train anew."""
