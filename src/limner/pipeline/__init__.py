"""Work on whole images without prompts: image in, labels out."""
