"""What policies decide on: answers, similarity, uncertainty, hidden states."""
