"""What `task=` chooses: surrogate, pretrain, classify."""
