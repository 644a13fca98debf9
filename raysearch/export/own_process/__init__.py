"""A model in a fresh process, which other code's crash ends alone, and the messages to and from it."""
