"""Training samples: packed data, targets, views, augmentation."""
