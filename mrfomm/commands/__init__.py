"""The commands: wiring only. The scripts at the top level and the console commands call the same functions."""
