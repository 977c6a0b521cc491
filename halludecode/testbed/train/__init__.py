"""Makes the embedded model from nothing: scenes, vision by patches, then words by sentences.

`run.train` does it all. Stage 1 trains the vision tower, the projector and the word embeddings;
stage 2 the projector and the decoder on captions and questions, as LLaVA is trained.
"""
