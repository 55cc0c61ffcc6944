"""How the zoo was trained: data, training loop, one script per model. Needed only to train the models again."""
