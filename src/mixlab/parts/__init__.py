"""What a model is made of. A part knows nothing of models, training or reports."""
