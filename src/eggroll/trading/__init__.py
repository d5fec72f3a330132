"""Order execution against a limit order book: the book, its messages, an S5 model of them, and its fine-tuning."""
