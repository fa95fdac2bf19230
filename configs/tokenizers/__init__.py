"""One config per tokenizer, at 24 bits an item where the method allows."""
