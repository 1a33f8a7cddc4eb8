"""What texts are pooled to: embeddings, labels, scores, rankings."""
