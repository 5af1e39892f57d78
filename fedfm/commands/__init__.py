"""What a command does once its words are parsed; `cli` only parses and prints."""
